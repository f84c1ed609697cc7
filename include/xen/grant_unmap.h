/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Unmapping of grants whose pages may still be in use.
 *
 * A request has an array of unmap operations and the pages behind them. Any part
 * of it may be submitted, even while other parts are pending. Each page is
 * unmapped when nobody but the owner uses it any more.
 */
#ifndef _XEN_GRANT_UNMAP_H
#define _XEN_GRANT_UNMAP_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/rbtree.h>
#include <linux/types.h>

#include <asm/barrier.h>
#include <xen/grant_table.h>

struct gnttab_unmap_owner;
struct gnttab_unmap_request;

/**
 * typedef gnttab_unmap_done_t - called when nothing of a request is pending
 * @req: the request; it may be freed, or submitted again, from here on
 * @failed: how many pages were leaked since the last call
 *
 * Context: That of the caller where gnttab_unmap_refs_async() settles the last
 * page itself. Otherwise process context, on a workqueue that takes part in
 * memory reclaim. Everything else in the queue waits until it returns, so it must
 * not sleep for memory, nor for anybody else. The queue holds no lock.
 */
typedef void (*gnttab_unmap_done_t)(struct gnttab_unmap_request *req,
				    unsigned int failed);

/**
 * struct gnttab_unmap_request - pages whose grants are to be unmapped
 * @ops: an operation for each page, made by gnttab_set_unmap_op(). Operations with
 *       an invalid handle are skipped. When its page is settled, the handle of an
 *       operation is invalid, and its status is GNTST_okay or the error.
 * @pages: the pages
 * @waiting_since: for each page, when it began to wait, in jiffies, or 0 if it
 *                 does not wait. The caller zeroes the array once; after that
 *                 only the queue writes it.
 * @refs: how many references each page has when nobody uses it, or NULL if each
 *        has one
 * @owner: the owner; each request in the queue has a reference to it
 * @done: see gnttab_unmap_done_t
 *
 * A request is embedded in an object of its owner, who sets the fields above and
 * calls gnttab_unmap_request_init(). The object must stay until @done is called.
 * A page may be submitted again only once it is settled, and mapped again.
 */
struct gnttab_unmap_request {
	struct gnttab_unmap_grant_ref *ops;
	struct page **pages;
	unsigned long *waiting_since;
	const unsigned int *refs;
	struct gnttab_unmap_owner *owner;
	gnttab_unmap_done_t done;

	/* private: */
	/* Pages submitted and not settled, and one for each submission under way. */
	atomic_t pending;
	/* Pages leaked since the last done(). */
	atomic_t failed;

	/* The queue's lock protects these. */
	/* How many pages wait, and how many have waited since it entered the queue. */
	unsigned int waiting, deferred;
	/* All pages that wait are from first on and before end. */
	unsigned int first, end;
	/* When it entered the queue, and how many requests had done so before. */
	unsigned long entered;
	u64 number;
	struct rb_node node;
	/* While it waits for a pass: when it is due, and after which delay. */
	struct rb_node due_node;
	unsigned long due;
	unsigned int delay_ms;
	/* A pass is at work on it; pages have begun to wait since that pass began. */
	bool in_pass;
	bool grown;

	/* These belong to the pass. */
	struct list_head pass_link;
	unsigned int settled, leaked;
};

/**
 * gnttab_unmap_request_init - prepare a request for its first submission
 * @req: the request
 */
static inline void gnttab_unmap_request_init(struct gnttab_unmap_request *req)
{
	atomic_set(&req->pending, 0);
	atomic_set(&req->failed, 0);
	req->waiting = 0;
	req->in_pass = false;
}

/**
 * gnttab_unmap_pending - tell whether pages of a request are still to be settled
 * @req: the request
 *
 * Context: Any. Nobody submits pages of @req at the same time.
 * Return: false if every page that was submitted is settled.
 */
static inline bool gnttab_unmap_pending(const struct gnttab_unmap_request *req)
{
	/* Pairs with the atomic_sub_and_test() of whoever has settled the last page. */
	return atomic_read_acquire(&req->pending);
}

/**
 * gnttab_unmap_submitted - tell whether a page was submitted, or never mapped
 * @req: the request
 * @i: the page
 *
 * Context: Any. Nobody submits the page at the same time.
 * Return: true if the page waits or is settled.
 */
static inline bool gnttab_unmap_submitted(const struct gnttab_unmap_request *req,
					  unsigned int i)
{
	/* Pairs with the release in pass_flush(), which comes after the handle. */
	return smp_load_acquire(&req->waiting_since[i]) ||
	       READ_ONCE(req->ops[i].handle) == INVALID_GRANT_HANDLE;
}

bool gnttab_unmap_refs_async(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count);
int __must_check gnttab_unmap_refs_both(struct gnttab_unmap_request *req,
					struct gnttab_unmap_grant_ref *user_ops,
					unsigned int count);
void gnttab_unmap_refs_defer(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count);

__printf(2, 3)
struct gnttab_unmap_owner *gnttab_unmap_owner_create(struct module *module,
						     const char *fmt, ...);
struct gnttab_unmap_owner *gnttab_unmap_owner_get(struct gnttab_unmap_owner *owner);
void gnttab_unmap_owner_put(struct gnttab_unmap_owner *owner);
unsigned int gnttab_unmap_owner_requests(const struct gnttab_unmap_owner *owner);
int gnttab_unmap_drain(struct gnttab_unmap_owner *owner, unsigned int timeout_ms);

#endif /* _XEN_GRANT_UNMAP_H */
