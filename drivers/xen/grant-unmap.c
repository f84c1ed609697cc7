// SPDX-License-Identifier: GPL-2.0
/*
 * Unmapping of grants, once nobody uses their pages any more.
 *
 * Pages that are mapped onto another domain's frames go to pipes, to disks and
 * to networks like any others, and whoever holds one may keep it for long. The
 * frame cannot be taken away from under a holder. Nobody can wait for a holder
 * where grants are unmapped, either: that is in MMU notifiers and in soft
 * interrupts. So a page that is idle is unmapped at once, and a page that is in
 * use waits in a queue, which tries it again and again.
 */

/**
 * DOC: States of pages and requests
 *
 * A page is in one of these states::
 *
 *   state     operation's handle   waiting_since
 *   -----     ------------------   -------------
 *   mapped    valid                0
 *     |
 *     |  gnttab_unmap_refs_async(): in use
 *     v
 *   waiting   valid                when it was found in use
 *     |
 *     |  idle: the reference count is frozen, one hypercall, thawed
 *     v
 *   settled   invalid              0
 *
 * An idle page is settled right away, without waiting. A settled page is
 * unmapped if the status of its operation is GNTST_okay. Otherwise the
 * hypervisor has refused: the page is leaked, and never used again.
 *
 * A request enters the queue with its first page that waits, and leaves it with
 * its last one. In between it is in one of two places. The lock protects the
 * membership of both::
 *
 *   queue->waiting   ordered by the time when the request is due; more pages make
 *     |      ^       it due in 1 ms, if that is earlier
 *     |      |
 *     |      |  pages are left: due after twice the delay, up to 256 ms; after
 *     |      |  1 ms if more pages have begun to wait since the pass began
 *     v      |
 *   queue->in_pass   due: a pass tries its pages, without the lock
 *     |
 *     |  no page is left
 *     v
 *   gone, and done() is called
 *
 * There is one pass at a time, which a timer starts for the first request due.
 */

#define pr_fmt(fmt) "xen:" KBUILD_MODNAME ": " fmt

#include <kunit/static_stub.h>
#include <linux/dcache.h>
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page_ref.h>
#include <linux/rbtree.h>
#include <linux/refcount.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <xen/grant_table.h>
#include <xen/grant_unmap.h>
#include <xen/page.h>
#include <xen/xen.h>
#include <asm/xen/hypercall.h>

#define CREATE_TRACE_POINTS
#include <trace/events/xen_grant_unmap.h>

/*
 * A request waits at least this long for its first pass, then twice as long for
 * each next one, rounded up to jiffies.
 */
#define UNMAP_MIN_DELAY_MS 1
#define UNMAP_MAX_DELAY_MS 256
/* Operations in one hypercall of a pass. */
#define UNMAP_BATCH 128
/* Pages that begin to wait in one go, with interrupts off. */
#define UNMAP_MARK 512
/* Pages, or requests, that are looked at in one go. */
#define UNMAP_STEP 128
/* Pages that are stuck are looked for each second, and reported this often. */
#define REPORT_INTERVAL (60 * HZ)

static unsigned int report_after = 60;
module_param(report_after, uint, 0644);
MODULE_PARM_DESC(report_after,
		 "Seconds after which granted pages that are still in use are reported, 0: never");

/**
 * struct gnttab_unmap_owner - on whose behalf grants are unmapped
 * @queue: where the requests wait: the only queue, but in a KUnit test
 * @users: references
 * @requests: requests in the queue, each until its done() has returned
 * @drained: woken when @requests becomes zero
 * @module: the module with the requests' done(), pinned by each request in the queue
 * @name: tells an administrator who has mapped a page
 */
struct gnttab_unmap_owner {
	struct unmap_queue *queue;
	refcount_t users;
	atomic_t requests;
	wait_queue_head_t drained;
	struct module *module;
	char name[48];
};

/* An idle page that a pass has frozen. */
struct unmap_candidate {
	struct gnttab_unmap_request *req;
	unsigned int index;
};

/**
 * struct unmap_stats - counters, which only grow
 * @deferred: pages that had to wait
 * @unmapped: pages that have waited, and were unmapped
 * @failed: pages that have waited, and were leaked
 * @passes: passes
 * @attempts: pages that the passes have tried
 * @hypercalls: hypercalls of the passes
 */
struct unmap_stats {
	u64 deferred;
	u64 unmapped;
	u64 failed;
	u64 passes;
	u64 attempts;
	u64 hypercalls;
};

/**
 * struct unmap_queue - requests with pages that wait
 * @lock: protects the fields down to @stats, and those of the requests that say so.
 *        Taken in any context.
 * @waiting: the requests that no pass is at work on, first due first
 * @in_pass: the requests that a pass is at work on
 * @requests: all of both kinds by their numbers, for whoever walks over the queue
 * @next_number: the number of the next request to enter
 * @stats: see struct unmap_stats
 * @wq: where passes run. It takes part in memory reclaim, which may wait for a
 *      disk of blkback's.
 * @work: a pass. The fields below belong to it.
 * @next_report: when to look for pages that are stuck, in jiffies
 * @hypercalls: how many this pass has made
 * @count: how many operations it has gathered for the next one
 * @ops: those operations
 * @pages: their pages
 * @from: where they come from
 */
struct unmap_queue {
	spinlock_t lock; /* see above */
	struct rb_root_cached waiting;
	struct list_head in_pass;
	struct rb_root requests;
	u64 next_number;
	struct unmap_stats stats;

	struct workqueue_struct *wq;
	struct delayed_work work;

	unsigned long next_report;
	unsigned int hypercalls;
	unsigned int count;
	struct gnttab_unmap_grant_ref ops[UNMAP_BATCH];
	struct page *pages[UNMAP_BATCH];
	struct unmap_candidate from[UNMAP_BATCH];
};

static struct unmap_queue unmap_queue;

/* Pages that are never used again, see page_leaked(). */
static atomic_long_t unmap_leaked;

/* --- unmapping */

/* An operation that the hypervisor does not get to keeps its status, an error. */
static int unmap_hypercall(struct gnttab_unmap_grant_ref *ops, unsigned int count)
{
	KUNIT_STATIC_STUB_REDIRECT(unmap_hypercall, ops, count);

	return HYPERVISOR_grant_table_op(GNTTABOP_unmap_grant_ref, ops, count);
}

/* If it fails, the status of each operation tells whether its page has failed. */
static int unmap_p2m(struct gnttab_unmap_grant_ref *ops, struct page **pages,
		     unsigned int count)
{
	KUNIT_STATIC_STUB_REDIRECT(unmap_p2m, ops, pages, count);

	return clear_foreign_p2m_mapping(ops, pages, count);
}

static void report_leak(const struct xen_page_foreign *foreign, int status)
{
	KUNIT_STATIC_STUB_REDIRECT(report_leak, foreign, status);

	pr_err_ratelimited("failed to unmap grant %u of domain %u: %d\n",
			   foreign->gref, foreign->domid, status);
}

/*
 * The frame of another domain is still mapped at this page, or the page's p2m entry
 * was not that of a foreign frame, so nobody knows what it is. The page keeps its
 * tag, by which gnttab_free_pages() and gnttab_page_cache_put() know not to hand
 * it out again.
 */
static void page_leaked(struct page *page, int status)
{
	static const struct xen_page_foreign unknown = {
		.domid = DOMID_INVALID,
		.gref = INVALID_GRANT_REF,
	};
	struct xen_page_foreign *foreign = xen_page_foreign(page);

	/* It has no tag if a part of its mapping has failed. */
	if (!foreign) {
		SetPageForeign(page);
		foreign = xen_page_foreign(page);
		if (foreign)
			*foreign = unknown;
	}
	atomic_long_inc(&unmap_leaked);
	report_leak(foreign ?: &unknown, status);
}

/*
 * Take the p2m entry and the tag from each page that the hypervisor has
 * unmapped. The others are leaked. Afterwards each operation's status is
 * GNTST_okay or the error, and each page's tag tells the truth.
 *
 * Return: the number of pages that are leaked.
 */
static unsigned int settle_pages(struct gnttab_unmap_grant_ref *ops,
				 struct page **pages, unsigned int count)
{
	unsigned int i, n, failed = 0;

	for (i = 0; i < count; i += n) {
		/* Usually there is one run, of all pages. */
		for (n = 0; i + n < count; n++)
			if (ops[i + n].status != GNTST_okay || !PageForeign(pages[i + n]))
				break;
		if (!n) {
			n = 1;
			/*
			 * A page without a tag has no p2m entry, and an operation
			 * without a handle has no mapping.
			 */
			if (ops[i].status == GNTST_okay ||
			    ops[i].handle == INVALID_GRANT_HANDLE)
				continue;
			page_leaked(pages[i], ops[i].status);
			failed++;
			continue;
		}
		if (!unmap_p2m(ops + i, pages + i, n)) {
			for (unsigned int j = i; j < i + n; j++)
				ClearPageForeign(pages[j]);
			continue;
		}
		/*
		 * A p2m entry was not that of a foreign frame. Only its own page is
		 * leaked: those beside it may be of other requests and domains.
		 */
		for (unsigned int j = i; j < i + n; j++) {
			if (ops[j].status == GNTST_okay) {
				ClearPageForeign(pages[j]);
				continue;
			}
			page_leaked(pages[j], ops[j].status);
			failed++;
		}
	}
	return failed;
}

static void unmap_ops(struct gnttab_unmap_grant_ref *ops, unsigned int count)
{
	if (unmap_hypercall(ops, count))
		pr_err_ratelimited("hypercall for %u mappings of grants failed\n", count);
}

/*
 * Unmap the grants of pages that nobody can get hold of meanwhile.
 *
 * Return: the number of pages that are leaked.
 */
static unsigned int unmap_pages(struct gnttab_unmap_grant_ref *ops,
				struct page **pages, unsigned int count)
{
	unmap_ops(ops, count);
	return settle_pages(ops, pages, count);
}

/**
 * gnttab_unmap_refs - unmap grants of pages that are known not to be in use
 * @unmap_ops: an operation for each page, made by gnttab_set_unmap_op()
 * @pages: the pages
 * @count: how many
 *
 * The status of each operation tells whether its page was unmapped. A page that
 * was not keeps its tag, and is not handed out again when it is given to
 * gnttab_free_pages() or gnttab_page_cache_put().
 *
 * Context: Any.
 * Return: 0, or -EIO if a page could not be unmapped.
 */
int gnttab_unmap_refs(struct gnttab_unmap_grant_ref *unmap_ops,
		      struct page **pages, unsigned int count)
{
	return unmap_pages(unmap_ops, pages, count) ? -EIO : 0;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs);

/* How many references the page has when nobody but the owner uses it. */
static __always_inline unsigned int
idle_refs(const struct gnttab_unmap_request *req, unsigned int i)
{
	return req->refs ? req->refs[i] : 1;
}

/*
 * Freeze an idle page. That makes the test for idle pages and the hypercall one:
 * until page_thaw() the page has no reference, so nobody can take another one.
 */
static __always_inline bool page_freeze(const struct gnttab_unmap_request *req, unsigned int i)
{
	unsigned int refs = idle_refs(req, i);

	/* The tail pages of a DMA buffer never have any. */
	return refs ? page_ref_freeze(req->pages[i], refs) : !page_count(req->pages[i]);
}

static __always_inline void page_thaw(const struct gnttab_unmap_request *req, unsigned int i)
{
	unsigned int refs = idle_refs(req, i);

	if (refs)
		page_ref_unfreeze(req->pages[i], refs);
}

/*
 * Unmap the idle pages of a range.
 *
 * Return: the number of pages that are settled.
 */
static unsigned int unmap_idle(struct gnttab_unmap_request *req,
			       unsigned int first, unsigned int count)
{
	unsigned int i = first, end = first + count, busy = 0, failed = 0;

	while (i < end) {
		unsigned int start = i;

		while (i < end && req->ops[i].handle != INVALID_GRANT_HANDLE &&
		       page_freeze(req, i))
			i++;
		if (i > start)
			failed += unmap_pages(req->ops + start, req->pages + start,
					      i - start);
		for (unsigned int j = start; j < i; j++) {
			page_thaw(req, j);
			req->ops[j].handle = INVALID_GRANT_HANDLE;
		}
		if (i < end && req->ops[i++].handle != INVALID_GRANT_HANDLE)
			busy++;
	}
	if (failed)
		atomic_add(failed, &req->failed);
	return count - busy;
}

/**
 * gnttab_unmap_refs_both - unmap grants that are mapped twice, if none is in use
 * @req: a request for the kernel's mappings
 * @user_ops: as many operations for the other mappings, those of a process. They
 *            lie right before @req->ops in one array, so that one hypercall takes
 *            both.
 * @count: how many pages the request has
 *
 * Nothing is unmapped if a page is in use, waits, or lacks a mapping. Otherwise
 * all pages are settled on return, and @req->done() is not called. If the
 * process's mapping of a page could not be unmapped, the operation for the
 * kernel's has that error.
 *
 * The process's page table may still have the pages, but nobody may look them up
 * there.
 *
 * Context: Any. Nobody submits pages of @req at the same time.
 * Return: 0, -EIO if a page could not be unmapped, or -EBUSY if nothing was done.
 */
int gnttab_unmap_refs_both(struct gnttab_unmap_request *req,
			   struct gnttab_unmap_grant_ref *user_ops, unsigned int count)
{
	unsigned int frozen, failed;

	for (frozen = 0; frozen < count; frozen++)
		if (user_ops[frozen].handle == INVALID_GRANT_HANDLE ||
		    gnttab_unmap_submitted(req, frozen) || !page_freeze(req, frozen))
			break;
	if (frozen < count) {
		while (frozen--)
			page_thaw(req, frozen);
		return -EBUSY;
	}

	unmap_ops(user_ops, 2 * count);
	/* The frame is still mapped if either mapping is. */
	for (unsigned int i = 0; i < count; i++)
		if (user_ops[i].status != GNTST_okay)
			req->ops[i].status = user_ops[i].status;
	failed = settle_pages(req->ops, req->pages, count);
	for (unsigned int i = 0; i < count; i++) {
		page_thaw(req, i);
		user_ops[i].handle = INVALID_GRANT_HANDLE;
		req->ops[i].handle = INVALID_GRANT_HANDLE;
	}
	return failed ? -EIO : 0;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs_both);

/* --- the queue */

/* Have a pass when @due has come. */
static void queue_schedule(struct unmap_queue *q, unsigned long due)
{
	unsigned long now = jiffies;

	KUNIT_STATIC_STUB_REDIRECT(queue_schedule, q, due);

	mod_delayed_work(q->wq, &q->work, time_after(due, now) ? due - now : 0);
}

static bool due_is_earlier(struct rb_node *a, const struct rb_node *b)
{
	return time_before(rb_entry(a, struct gnttab_unmap_request, due_node)->due,
			   rb_entry(b, struct gnttab_unmap_request, due_node)->due);
}

/* Return: whether this request is now the first one due. */
static bool queue_wait(struct unmap_queue *q, struct gnttab_unmap_request *req,
		       unsigned long due)
{
	lockdep_assert_held(&q->lock);

	req->due = due;
	/* Those that are due at the same time stay in the order in which they came. */
	return rb_add_cached(&req->due_node, &q->waiting, due_is_earlier);
}

static bool number_is_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct gnttab_unmap_request, node)->number <
	       rb_entry(b, struct gnttab_unmap_request, node)->number;
}

/* The references taken here are dropped once the request has left the queue. */
static void queue_enter(struct unmap_queue *q, struct gnttab_unmap_request *req,
			unsigned int first, unsigned int end, unsigned long now)
{
	lockdep_assert_held(&q->lock);

	gnttab_unmap_owner_get(req->owner);
	atomic_inc(&req->owner->requests);
	__module_get(req->owner->module);
	/* No number is used twice, not even by the same request. */
	req->number = q->next_number++;
	rb_add(&req->node, &q->requests, number_is_less);
	req->entered = now;
	req->deferred = 0;
	req->first = first;
	req->end = end;
}

/*
 * Let the pages of a range that are not settled wait, and the request be due
 * soon: pages that were just let go of are more likely to become idle soon than
 * those that have been in use for long.
 *
 * A pass may be at work on the request. It settles what it finds waiting, and
 * takes that off @req->waiting under the lock, so the pages are added to
 * @req->waiting before the lock is released.
 *
 * Return: the number of pages that wait from now on.
 */
static unsigned int queue_defer(struct unmap_queue *q, struct gnttab_unmap_request *req,
				unsigned int first, unsigned int end, unsigned long now)
{
	unsigned long due = now + msecs_to_jiffies(UNMAP_MIN_DELAY_MS);
	unsigned int i, deferred = 0;
	unsigned long flags;
	bool enters;

	spin_lock_irqsave(&q->lock, flags);
	for (i = first; i < end; i++) {
		if (req->ops[i].handle == INVALID_GRANT_HANDLE)
			continue;
		/*
		 * Pairs with the acquire in page_waits(): the operation is complete
		 * when a pass takes the page. 0 is for pages that do not wait, so a
		 * page that begins to wait at 0 does so a jiffy earlier.
		 */
		smp_store_release(&req->waiting_since[i], now ?: now - 1);
		deferred++;
	}
	if (!deferred)
		goto out;

	enters = !req->waiting;
	if (enters)
		queue_enter(q, req, first, end, now);
	req->waiting += deferred;
	req->deferred += deferred;
	WRITE_ONCE(req->first, min(req->first, first));
	WRITE_ONCE(req->end, max(req->end, end));
	req->delay_ms = UNMAP_MIN_DELAY_MS;
	req->grown = true;
	q->stats.deferred += deferred;
	/* Never later: a stream of submissions must not put the request off. */
	if (enters || (!req->in_pass && time_before(due, req->due))) {
		if (!enters)
			rb_erase_cached(&req->due_node, &q->waiting);
		if (queue_wait(q, req, due))
			queue_schedule(q, due);
	}
	trace_grant_unmap_defer(req->owner->name, deferred, req->waiting);
out:
	spin_unlock_irqrestore(&q->lock, flags);
	return deferred;
}

/*
 * @req->pending counts the pages that are submitted and not settled, and the
 * submissions that are under way. Whoever takes it to zero calls done(). So
 * done() is never called before a submission has looked at all of its pages.
 */
static bool submission_begin(struct gnttab_unmap_request *req, unsigned int count)
{
	return !atomic_fetch_add(count + 1, &req->pending);
}

static void pending_sub(struct gnttab_unmap_request *req, unsigned int count)
{
	if (atomic_sub_and_test(count, &req->pending))
		req->done(req, atomic_xchg(&req->failed, 0));
}

static void submission_end(struct gnttab_unmap_request *req, unsigned int settled)
{
	pending_sub(req, settled + 1);
}

/* Return: the number of pages that wait from now on. */
static unsigned int submission_defer(struct gnttab_unmap_request *req,
				     unsigned int first, unsigned int count)
{
	unsigned int end = first + count, deferred = 0;

	for (; first < end; first += min(end - first, UNMAP_MARK))
		deferred += queue_defer(req->owner->queue, req, first,
					min(first + UNMAP_MARK, end), jiffies);
	return deferred;
}

/**
 * gnttab_unmap_refs_async - unmap grants, those in use once they are idle
 * @req: a request, see struct gnttab_unmap_request
 * @first: the first page of it to unmap
 * @count: how many, or 0 to have @req->done() called if nothing is pending
 *
 * Idle pages are unmapped before this returns. Nothing is allocated, and nothing
 * is waited for. @req->done() is called once, as soon as nothing of the request
 * is pending: often before this returns.
 *
 * Nobody may be able to find the pages by a page table any more.
 *
 * Context: Any, including soft interrupts, and hard ones unless on PREEMPT_RT.
 * Return: true if nothing of the request was pending before: @req->done() is
 *         called for this submission. false if it is called once for this
 *         submission and an earlier one.
 */
bool gnttab_unmap_refs_async(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count)
{
	bool started = submission_begin(req, count);
	unsigned int settled = unmap_idle(req, first, count);

	if (settled < count)
		submission_defer(req, first, count);
	submission_end(req, settled);
	return started;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs_async);

/**
 * gnttab_unmap_refs_defer - let the queue unmap grants
 * @req: a request, see struct gnttab_unmap_request
 * @first: the first page of it to unmap
 * @count: how many
 *
 * Like gnttab_unmap_refs_async(), but all pages wait for a pass, which unmaps
 * the idle pages of many requests with few hypercalls.
 *
 * Context: Any, including soft interrupts, and hard ones unless on PREEMPT_RT.
 */
void gnttab_unmap_refs_defer(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count)
{
	submission_begin(req, count);
	/* A page with an invalid handle has nothing to wait for. */
	submission_end(req, count - submission_defer(req, first, count));
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs_defer);

/* --- a pass */

static bool page_waits(const struct gnttab_unmap_request *req, unsigned int i)
{
	/* Pairs with the release in queue_defer(). */
	return smp_load_acquire(&req->waiting_since[i]);
}

/* Unmap what the pass has gathered. */
static void pass_flush(struct unmap_queue *q)
{
	if (!q->count)
		return;

	q->hypercalls++;
	unmap_pages(q->ops, q->pages, q->count);
	for (unsigned int i = 0; i < q->count; i++) {
		struct gnttab_unmap_request *req = q->from[i].req;
		unsigned int index = q->from[i].index;

		page_thaw(req, index);
		req->ops[index].status = q->ops[i].status;
		WRITE_ONCE(req->ops[index].handle, INVALID_GRANT_HANDLE);
		/*
		 * Pairs with the acquire in gnttab_unmap_submitted(): the handle of a
		 * page that does not wait any more is invalid.
		 */
		smp_store_release(&req->waiting_since[index], 0);
		req->settled++;
		if (q->ops[i].status != GNTST_okay)
			req->leaked++;
	}
	q->count = 0;
}

static bool pass_should_yield(void)
{
	KUNIT_STATIC_STUB_REDIRECT(pass_should_yield);

	return need_resched();
}

/* Where the kernel is not preempted, no page stays frozen while others have the CPU. */
static void pass_yield(struct unmap_queue *q)
{
	if (!pass_should_yield())
		return;
	pass_flush(q);
	cond_resched();
}

/* Gather the idle pages of a range. Return: how many pages were tried. */
static __always_inline unsigned int
pass_gather_range(struct unmap_queue *q, struct gnttab_unmap_request *req,
		  unsigned int first, unsigned int end)
{
	unsigned int attempts = 0;

	for (unsigned int i = first; i < end; i++) {
		if (!page_waits(req, i))
			continue;
		attempts++;
		if (!page_freeze(req, i))
			continue;
		q->ops[q->count] = req->ops[i];
		q->pages[q->count] = req->pages[i];
		q->from[q->count].req = req;
		q->from[q->count].index = i;
		if (++q->count == UNMAP_BATCH)
			pass_flush(q);
	}
	return attempts;
}

/* Gather the idle pages of a request. Return: how many pages were tried. */
static unsigned int pass_gather(struct unmap_queue *q, struct gnttab_unmap_request *req)
{
	/* A submission at the same time may extend the range: it is seen next time. */
	unsigned int first = READ_ONCE(req->first), end = READ_ONCE(req->end);
	unsigned int attempts = 0;

	req->settled = 0;
	req->leaked = 0;
	for (; first < end; first += min(end - first, UNMAP_STEP)) {
		attempts += pass_gather_range(q, req, first, min(first + UNMAP_STEP, end));
		pass_yield(q);
	}
	return attempts;
}

/* Take a few of the requests that are due. Return: whether there may be more. */
static bool pass_take(struct unmap_queue *q, unsigned long now)
{
	lockdep_assert_held(&q->lock);

	for (unsigned int taken = 0; taken < UNMAP_STEP; taken++) {
		struct rb_node *first = rb_first_cached(&q->waiting);
		struct gnttab_unmap_request *req;

		req = rb_entry_safe(first, struct gnttab_unmap_request, due_node);
		if (!req || time_after(req->due, now))
			return false;
		rb_erase_cached(first, &q->waiting);
		list_add_tail(&req->pass_link, &q->in_pass);
		req->in_pass = true;
		req->grown = false;
	}
	return true;
}

/* Let a request that the pass is through with wait again, or leave the queue. */
static void pass_put_back(struct unmap_queue *q, struct gnttab_unmap_request *req,
			  unsigned long now)
{
	struct gnttab_unmap_owner *owner = req->owner;
	unsigned int settled = req->settled, leaked = req->leaked;
	bool last;

	if (leaked)
		atomic_add(leaked, &req->failed);

	spin_lock_irq(&q->lock);
	q->stats.unmapped += settled - leaked;
	q->stats.failed += leaked;
	list_del(&req->pass_link);
	req->in_pass = false;
	req->waiting -= settled;
	last = !req->waiting;
	if (last) {
		rb_erase(&req->node, &q->requests);
		trace_grant_unmap_done(owner->name, req->deferred,
				       atomic_read(&req->failed),
				       jiffies_to_msecs(now - req->entered));
	} else {
		if (!req->grown)
			req->delay_ms = min(2 * req->delay_ms, UNMAP_MAX_DELAY_MS);
		queue_wait(q, req, now + msecs_to_jiffies(req->delay_ms));
	}
	spin_unlock_irq(&q->lock);

	/* Until here the settled pages count as pending: the request is not gone. */
	if (settled)
		pending_sub(req, settled);

	if (last) {
		struct module *module = owner->module;

		/* Not before done() has returned. */
		if (atomic_dec_and_test(&owner->requests))
			wake_up_all(&owner->drained);
		gnttab_unmap_owner_put(owner);
		module_put(module);
	}
}

/* --- looking at what waits */

/**
 * struct waiting_page - a page that waits, as a walk has found it
 * @ms: how long it has waited
 * @references: its references
 * @idle: how many of these are there when nobody uses it
 * @pfn: its frame number
 * @foreign: its domain and grant reference
 * @owner: the name of its owner
 */
struct waiting_page {
	unsigned int ms;
	unsigned int references;
	unsigned int idle;
	unsigned long pfn;
	struct xen_page_foreign foreign;
	char owner[sizeof_field(struct gnttab_unmap_owner, name)];
};

/**
 * struct unmap_walk - a walk over the pages that wait
 * @end: the number of the first request that the walk leaves out
 * @number: the number of the request that the walk has reached, which may be gone
 * @index: the page to look at next, if that request is not gone
 * @owner: the owner whose pages are wanted, or NULL for all
 * @min_ms: the pages wanted have waited at least that long
 * @now: the time, in jiffies
 * @page: the page found last
 */
struct unmap_walk {
	u64 end;
	u64 number;
	unsigned int index;
	const struct gnttab_unmap_owner *owner;
	unsigned int min_ms;
	unsigned long now;
	struct waiting_page page;
};

/* Begin a walk over the requests that are in the queue now. */
static void walk_begin(struct unmap_walk *walk, struct unmap_queue *q,
		       const struct gnttab_unmap_owner *owner, unsigned int min_ms,
		       unsigned long now)
{
	spin_lock_irq(&q->lock);
	walk->end = q->next_number;
	spin_unlock_irq(&q->lock);
	walk->number = 0;
	walk->index = 0;
	walk->owner = owner;
	walk->min_ms = min_ms;
	walk->now = now;
}

/* The first request whose number is not less than this one. */
static struct gnttab_unmap_request *walk_find(struct unmap_queue *q, u64 number)
{
	struct rb_node *node = q->requests.rb_node;
	struct gnttab_unmap_request *found = NULL;

	lockdep_assert_held(&q->lock);

	while (node) {
		struct gnttab_unmap_request *req =
			rb_entry(node, struct gnttab_unmap_request, node);

		if (req->number >= number) {
			found = req;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return found;
}

/* A page may have begun to wait after the walk has looked at the clock. */
static unsigned int elapsed_ms(unsigned long since, unsigned long now)
{
	return time_after(now, since) ? jiffies_to_msecs(now - since) : 0;
}

static bool walk_wants_request(const struct unmap_walk *walk,
			       const struct gnttab_unmap_request *req)
{
	/* No page has waited for longer than its request. */
	return (!walk->owner || walk->owner == req->owner) &&
	       elapsed_ms(req->entered, walk->now) >= walk->min_ms;
}

static bool walk_look_at_page(struct unmap_walk *walk, const struct gnttab_unmap_request *req,
			      unsigned int i)
{
	unsigned long since = READ_ONCE(req->waiting_since[i]);
	struct waiting_page *found = &walk->page;
	struct page *page = req->pages[i];
	struct xen_page_foreign *foreign;

	if (!since)
		return false;
	found->ms = elapsed_ms(since, walk->now);
	foreign = xen_page_foreign(page);
	/* A pass may be about to settle it, and have taken its tag already. */
	if (found->ms < walk->min_ms || !foreign)
		return false;
	found->idle = idle_refs(req, i);
	/* While a pass has frozen it, it has none. */
	found->references = max_t(unsigned int, page_ref_count(page), found->idle);
	found->pfn = page_to_pfn(page);
	found->foreign = *foreign;
	strscpy(found->owner, req->owner->name);
	return true;
}

/*
 * Look at the next few pages.
 *
 * Return: 1 if a page was found, 0 if no page is left, or -EAGAIN if some are left
 *         to look at.
 */
static int walk_step(struct unmap_walk *walk, struct unmap_queue *q)
{
	struct gnttab_unmap_request *req = walk_find(q, walk->number);

	for (unsigned int looked = 0; looked < UNMAP_STEP; looked++) {
		if (!req || req->number >= walk->end)
			return 0;
		if (req->number > walk->number) {
			walk->number = req->number;
			walk->index = 0;
		}
		walk->index = max(walk->index, req->first);
		if (walk->index >= req->end || !walk_wants_request(walk, req)) {
			walk->number++;
			walk->index = 0;
			req = rb_entry_safe(rb_next(&req->node), struct gnttab_unmap_request,
					    node);
			continue;
		}
		if (walk_look_at_page(walk, req, walk->index++))
			return 1;
	}
	return -EAGAIN;
}

/*
 * Find the next page that waits.
 *
 * Requests come and go whenever the lock is not held. So a walk keeps the number
 * of a request instead of a pointer, and goes on with the first request that has
 * this number or a higher one. It finds each page that waits all the time once.
 *
 * Return: false if no page is left.
 */
static bool walk_next(struct unmap_walk *walk, struct unmap_queue *q)
{
	int ret;

	do {
		cond_resched();
		spin_lock_irq(&q->lock);
		ret = walk_step(walk, q);
		spin_unlock_irq(&q->lock);
	} while (ret < 0);
	return ret;
}

/* How many pages are in use, and which one has waited longest. */
struct unmap_survey {
	unsigned int pages;
	struct waiting_page longest;
};

/* Look for pages of an owner, or of all, that have waited for @min_ms or longer. */
static void queue_survey(struct unmap_queue *q, const struct gnttab_unmap_owner *owner,
			 unsigned long now, unsigned int min_ms,
			 struct unmap_survey *survey)
{
	struct unmap_walk walk;

	memset(survey, 0, sizeof(*survey));
	walk_begin(&walk, q, owner, min_ms, now);
	while (walk_next(&walk, q)) {
		/* It is idle, or a pass has frozen it. */
		if (walk.page.references <= walk.page.idle)
			continue;
		if (!survey->pages++ || walk.page.ms > survey->longest.ms)
			survey->longest = walk.page;
	}
}

static void print_survey(const struct unmap_survey *survey, unsigned int ms)
{
	KUNIT_STATIC_STUB_REDIRECT(print_survey, survey, ms);

	pr_warn_ratelimited("%u pages in use for more than %u ms, longest: grant %u of domain %u (owner %s, pfn %lx, %u references)\n",
			    survey->pages, ms, survey->longest.foreign.gref,
			    survey->longest.foreign.domid, survey->longest.owner,
			    survey->longest.pfn, survey->longest.references);
}

/* Tell the kernel log when pages have waited for long, and then once a minute. */
static void queue_report(struct unmap_queue *q, unsigned long now)
{
	unsigned int after_ms = MSEC_PER_SEC * min(READ_ONCE(report_after),
						   UINT_MAX / MSEC_PER_SEC);
	struct unmap_survey survey;

	if (!after_ms || time_before(now, q->next_report))
		return;

	queue_survey(q, NULL, now, after_ms, &survey);
	q->next_report = now + (survey.pages ? REPORT_INTERVAL : HZ);
	if (survey.pages)
		print_survey(&survey, after_ms);
}

/* --- the queue and its timer */

/* Try the pages of all requests that are due at the time @now, once each. */
static void queue_pass(struct unmap_queue *q, unsigned long now)
{
	struct gnttab_unmap_request *req, *next;
	unsigned int attempts = 0, settled = 0, leaked = 0;
	struct rb_node *first;

	might_sleep();

	q->hypercalls = 0;
	spin_lock_irq(&q->lock);
	while (pass_take(q, now)) {
		spin_unlock_irq(&q->lock);
		cond_resched();
		spin_lock_irq(&q->lock);
	}
	spin_unlock_irq(&q->lock);

	/* Nobody else changes this list. */
	list_for_each_entry(req, &q->in_pass, pass_link)
		attempts += pass_gather(q, req);
	pass_flush(q);

	list_for_each_entry_safe(req, next, &q->in_pass, pass_link) {
		settled += req->settled;
		leaked += req->leaked;
		pass_put_back(q, req, now);
		cond_resched();
	}

	spin_lock_irq(&q->lock);
	q->stats.passes++;
	q->stats.attempts += attempts;
	q->stats.hypercalls += q->hypercalls;
	first = rb_first_cached(&q->waiting);
	if (first)
		queue_schedule(q, rb_entry(first, struct gnttab_unmap_request, due_node)->due);
	spin_unlock_irq(&q->lock);

	trace_grant_unmap_pass(attempts, settled - leaked, attempts - settled);
	queue_report(q, now);
}

static void unmap_work(struct work_struct *work)
{
	queue_pass(container_of(to_delayed_work(work), struct unmap_queue, work), jiffies);
}

static void queue_init(struct unmap_queue *q)
{
	spin_lock_init(&q->lock);
	q->waiting = RB_ROOT_CACHED;
	INIT_LIST_HEAD(&q->in_pass);
	q->requests = RB_ROOT;
	q->next_report = jiffies;
	INIT_DELAYED_WORK(&q->work, unmap_work);
}

/* --- owners */

/**
 * gnttab_unmap_owner_create - create an owner of requests
 * @module: the module with the requests' done(). It cannot be unloaded while one
 *          of them is in the queue.
 * @fmt: the format of the owner's name, <driver>/<instance>, which tells an
 *       administrator who has mapped a page
 *
 * Context: Process context, may sleep.
 * Return: an owner with one reference, or NULL if there is no memory.
 */
struct gnttab_unmap_owner *gnttab_unmap_owner_create(struct module *module,
						     const char *fmt, ...)
{
	struct gnttab_unmap_owner *owner = kzalloc(sizeof(*owner), GFP_KERNEL);
	va_list args;

	if (!owner)
		return NULL;

	owner->queue = &unmap_queue;
	refcount_set(&owner->users, 1);
	init_waitqueue_head(&owner->drained);
	owner->module = module;
	va_start(args, fmt);
	vscnprintf(owner->name, sizeof(owner->name), fmt, args);
	va_end(args);
	return owner;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_owner_create);

/**
 * gnttab_unmap_owner_get - take a reference
 * @owner: the owner
 *
 * Context: Any.
 * Return: @owner
 */
struct gnttab_unmap_owner *gnttab_unmap_owner_get(struct gnttab_unmap_owner *owner)
{
	refcount_inc(&owner->users);
	return owner;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_owner_get);

/**
 * gnttab_unmap_owner_put - drop a reference
 * @owner: the owner, or NULL
 *
 * The owner is freed with its last reference. Each request in the queue has one.
 *
 * Context: Any.
 */
void gnttab_unmap_owner_put(struct gnttab_unmap_owner *owner)
{
	if (owner && refcount_dec_and_test(&owner->users))
		kfree(owner);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_owner_put);

/**
 * gnttab_unmap_owner_requests - tell how many requests an owner has in the queue
 * @owner: the owner
 *
 * A request counts until its done() has returned.
 *
 * Context: Any.
 * Return: the number. Unless the owner submits something meanwhile, it only falls.
 */
unsigned int gnttab_unmap_owner_requests(const struct gnttab_unmap_owner *owner)
{
	return atomic_read(&owner->requests);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_owner_requests);

/**
 * gnttab_unmap_drain - wait until nothing of an owner is in the queue
 * @owner: the owner, who does not submit anything meanwhile
 * @timeout_ms: how long to wait, in ms, or 0 to look only
 *
 * If this returns 0, all pages that were submitted are settled, and done() has
 * returned for each request. If it returns -ETIMEDOUT after it has waited, it has
 * told the kernel log which page has been in use for longest.
 *
 * Context: Process context, sleeps.
 * Return: 0, -ETIMEDOUT, or -EINTR if the task was killed.
 */
int gnttab_unmap_drain(struct gnttab_unmap_owner *owner, unsigned int timeout_ms)
{
	struct unmap_survey survey;
	long ret;

	/* Pairs with the atomic_dec_and_test() in pass_put_back(): done() has returned. */
	if (!atomic_read_acquire(&owner->requests))
		return 0;
	if (!timeout_ms)
		return -ETIMEDOUT;

	ret = wait_event_killable_timeout(owner->drained,
					  !atomic_read_acquire(&owner->requests),
					  msecs_to_jiffies(timeout_ms));
	if (ret > 0)
		return 0;
	if (ret < 0)
		return -EINTR;

	queue_survey(owner->queue, owner, jiffies, 0, &survey);
	/* If no page is in use, a pass or done() takes its time. */
	if (survey.pages)
		print_survey(&survey, min(timeout_ms, survey.longest.ms));
	return -ETIMEDOUT;
}
EXPORT_SYMBOL_GPL(gnttab_unmap_drain);

/* --- debugfs, see Documentation/ABI/testing/debugfs-xen-grant-unmap */

#ifdef CONFIG_DEBUG_FS
/*
 * A reader has a walk, which goes on where it was when the next buffer is filled.
 */
static void *pending_start(struct seq_file *m, loff_t *pos)
{
	struct unmap_walk *walk = m->private;

	if (!*pos) {
		walk_begin(walk, &unmap_queue, NULL, 0, jiffies);
		return SEQ_START_TOKEN;
	}
	/* The page found last did not fit into the buffer: look whether it still waits. */
	if (walk->index)
		walk->index--;
	walk->now = jiffies;
	return walk_next(walk, &unmap_queue) ? walk : NULL;
}

static void *pending_next(struct seq_file *m, void *v, loff_t *pos)
{
	struct unmap_walk *walk = m->private;

	++*pos;
	return walk_next(walk, &unmap_queue) ? walk : NULL;
}

static void pending_stop(struct seq_file *m, void *v)
{
}

static int pending_show(struct seq_file *m, void *v)
{
	const struct unmap_walk *walk = m->private;
	const struct waiting_page *page = &walk->page;

	if (v == SEQ_START_TOKEN)
		seq_puts(m, "age_ms owner domid gref pfn references\n");
	else
		seq_printf(m, "%u %s %u %u %lx %u\n", page->ms, page->owner,
			   page->foreign.domid, page->foreign.gref, page->pfn,
			   page->references);
	return 0;
}

static const struct seq_operations pending_sops = {
	.start = pending_start,
	.next = pending_next,
	.stop = pending_stop,
	.show = pending_show,
};

static int pending_open(struct inode *inode, struct file *file)
{
	return seq_open_private(file, &pending_sops, sizeof(struct unmap_walk));
}

static const struct file_operations pending_fops = {
	.owner = THIS_MODULE,
	.open = pending_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = seq_release_private,
};

static int stats_show(struct seq_file *m, void *v)
{
	struct unmap_stats stats;

	spin_lock_irq(&unmap_queue.lock);
	stats = unmap_queue.stats;
	spin_unlock_irq(&unmap_queue.lock);

	seq_printf(m, "deferred %llu\n", stats.deferred);
	seq_printf(m, "unmapped %llu\n", stats.unmapped);
	seq_printf(m, "failed %llu\n", stats.failed);
	seq_printf(m, "leaked %lu\n", atomic_long_read(&unmap_leaked));
	seq_printf(m, "passes %llu\n", stats.passes);
	seq_printf(m, "attempts %llu\n", stats.attempts);
	seq_printf(m, "hypercalls %llu\n", stats.hypercalls);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int __init unmap_debugfs_init(void)
{
	struct dentry *found, *dir;

	if (!xen_domain())
		return 0;

	/* On x86, arch code may have been first. */
	found = debugfs_lookup("xen", NULL);
	dir = debugfs_create_dir("grant_unmap", found ?: debugfs_create_dir("xen", NULL));
	debugfs_create_file("pending", 0400, dir, NULL, &pending_fops);
	debugfs_create_file("stats", 0400, dir, NULL, &stats_fops);
	/* Only the lookup has taken a reference. */
	dput(found);
	return 0;
}
late_initcall(unmap_debugfs_init);
#endif

static int __init unmap_init(void)
{
	if (!xen_domain())
		return 0;

	queue_init(&unmap_queue);
	unmap_queue.wq = alloc_workqueue("xen-grant-unmap", WQ_MEM_RECLAIM | WQ_PERCPU, 0);

	return unmap_queue.wq ? 0 : -ENOMEM;
}

/* Before anything can map a grant. */
core_initcall(unmap_init);

#if IS_ENABLED(CONFIG_XEN_GRANT_UNMAP_KUNIT_TEST)
#include "tests/grant-unmap-test.c"
#endif
