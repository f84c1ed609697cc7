/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Unmapping of grants whose pages may still be in use.
 *
 * A request is an array of unmap operations and the pages behind them. Any part
 * of it may be submitted, also while other parts are pending: each page is
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
 * @failed: how many pages could not be unmapped since it was called last
 *
 * Context: That of the caller where gnttab_unmap_refs_async() unmaps the last
 * page itself, else process context on a workqueue that takes part in memory
 * reclaim, where all that waits stands behind it: it must not sleep for memory,
 * nor for anybody else. The queue holds no lock.
 */
typedef void (*gnttab_unmap_done_t)(struct gnttab_unmap_request *req,
				    unsigned int failed);

/**
 * struct gnttab_unmap_request - pages whose grants are to be unmapped
 * @ops: an operation for each page. One with an invalid handle is skipped.
 *       Once its page is settled its handle is invalid, and its status is
 *       GNTST_okay or the error.
 * @pages: the pages
 * @refs: how many references each page has when nobody uses it, or NULL if that
 *        is one for all of them
 * @owner: whom to name, and to keep, while something is pending
 * @done: see there
 *
 * To be embedded in an object of the owner, which initialises the fields above
 * and calls gnttab_unmap_request_init(). The object must stay until @done was
 * called. A page may be submitted again only after it was settled.
 */
struct gnttab_unmap_request {
	struct gnttab_unmap_grant_ref *ops;
	struct page **pages;
	const unsigned int *refs;
	struct gnttab_unmap_owner *owner;
	gnttab_unmap_done_t done;

	/* private: */
	/* Pages submitted and not settled, and one for each submission at work. */
	atomic_t pending;
	atomic_t failed;
	/* Since when something is pending, in jiffies. */
	unsigned long since;

	/* These are protected by the lock of the queue. */
	struct list_head link;
	unsigned long due;
	/* How many had entered the queue before, which never changes while it is there. */
	struct rb_node node;
	u64 number;
	/* How many pages wait, have ever waited, and a range that holds them. */
	unsigned int waiting, deferred;
	unsigned int first, end;
	/* The delay is 1 ms << level. */
	u8 level;
	/* A pass is at work on the request; it has grown since that began. */
	bool in_pass;
	bool grown;

	/* These belong to the pass. */
	unsigned int left_first, left_end;
	unsigned int settled, refused;
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
 * gnttab_unmap_pending - tell whether pages of a request are still to be unmapped
 * @req: the request
 *
 * Return: false if every page that was submitted is settled. The caller has to
 *         see to it that nobody submits one.
 */
static inline bool gnttab_unmap_pending(const struct gnttab_unmap_request *req)
{
	/* Pairs with the sub_and_test of whoever settled the last page. */
	return atomic_read_acquire(&req->pending);
}

/**
 * gnttab_unmap_submitted - tell whether a page was submitted, or never mapped
 * @req: the request
 * @i: the page
 *
 * Return: true if the page waits in the queue, or is settled. The caller has to
 *         see to it that nobody is submitting the page.
 */
static inline bool gnttab_unmap_submitted(const struct gnttab_unmap_request *req,
					  unsigned int i)
{
	/* A pass writes these in the other order: see pass_flush(). */
	return smp_load_acquire(&req->ops[i].status) > 0 ||
	       READ_ONCE(req->ops[i].handle) == INVALID_GRANT_HANDLE;
}

bool gnttab_unmap_refs_async(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count);
int __must_check gnttab_unmap_refs_both(struct gnttab_unmap_request *req,
					unsigned int count);
void gnttab_unmap_refs_defer(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count);

__printf(2, 3)
struct gnttab_unmap_owner *gnttab_unmap_owner_create(struct module *module,
						     const char *fmt, ...);
struct gnttab_unmap_owner *gnttab_unmap_owner_get(struct gnttab_unmap_owner *owner);
void gnttab_unmap_owner_put(struct gnttab_unmap_owner *owner);
int gnttab_unmap_drain(struct gnttab_unmap_owner *owner, unsigned int timeout_ms);

#endif /* _XEN_GRANT_UNMAP_H */
