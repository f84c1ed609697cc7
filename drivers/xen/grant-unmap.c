// SPDX-License-Identifier: GPL-2.0
/*
 * Unmapping of grants, once nobody uses their pages any more.
 *
 * The pages that foreign frames are mapped onto go to pipes, to disks and to
 * networks like any others, and whoever holds one may keep it for long. Taking
 * the frame away from under a holder is not an option, and neither is to wait
 * where the grant is to be unmapped: that is in MMU notifiers and in soft
 * interrupts. So pages that are idle are unmapped at once, and those in use wait
 * in a queue, the only one there is, which looks at them again and again.
 *
 * Requests wait in lists, one for each delay: 1, 2, 4 ... 256 ms. As the delay
 * is the same for all of a list, they are in the order in which they are due
 * (but for what two CPUs, or a pass, may be late with the time), so putting a
 * request in and taking it out cost the same however many there are. A single
 * timer is armed for the first one due.
 *
 * Whoever wants to see what waits goes by the numbers that the requests got when
 * they entered the queue, and looks at a few pages at a time: see walk_next().
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

/* Delays of 1 ms << 0 to 1 ms << 8. */
#define UNMAP_LEVELS 9
/* Operations of one hypercall of the queue. */
#define UNMAP_BATCH 128
/* Pages that are marked as waiting while interrupts are off. */
#define UNMAP_MARK 512
/* Pages, or requests, that are looked at while interrupts are off. */
#define UNMAP_STEP 128
/* How often pages that are stuck are reported; they are looked for each second. */
#define REPORT_INTERVAL (60 * HZ)

static unsigned int report_after = 60;
module_param(report_after, uint, 0644);
MODULE_PARM_DESC(report_after,
		 "Seconds after which granted pages that are still in use are reported, 0: never");

/**
 * struct gnttab_unmap_owner - on whose behalf grants are unmapped
 * @users: references
 * @requests: its requests that are in the queue, up to the return of done()
 * @drained: woken when @requests becomes zero
 * @module: where done() is, pinned by each request in the queue
 * @name: what to call it
 */
struct gnttab_unmap_owner {
	refcount_t users;
	atomic_t requests;
	wait_queue_head_t drained;
	struct module *module;
	char name[48];
};

/* An idle page that is about to be unmapped by a pass. */
struct unmap_candidate {
	struct gnttab_unmap_request *req;
	unsigned int index;
};

/**
 * struct unmap_stats - counters, which only grow
 * @deferred: pages that were put into the queue
 * @unmapped: pages of the queue that were unmapped
 * @failed: pages of the queue that could not be unmapped
 * @passes: passes over what was due
 * @attempts: pages that the passes looked at
 * @hypercalls: unmap hypercalls of the passes
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
 * struct unmap_queue - requests that wait for their pages
 * @lock: protects all but what belongs to the pass. Taken in any context.
 * @waiting: for each delay the requests with it, first due first
 * @in_pass: the requests that the pass is at work on
 * @requests: all of both kinds, by their numbers
 * @next_number: that of the next request to enter the queue
 * @armed: the work is going to run
 * @armed_for: when, in jiffies
 * @next_report: when to look for pages that are stuck, in jiffies
 * @stats: see there
 * @wq: where passes run. blkback may be what memory reclaim waits for.
 * @work: a pass
 * @hypercalls: of this pass. This and what follows belongs to the pass: there is
 *              only one at a time.
 * @count: how many operations have been gathered for the next hypercall
 * @ops: these operations
 * @pages: their pages
 * @from: where they come from
 */
struct unmap_queue {
	spinlock_t lock; /* for the rest, down to @wq */
	struct list_head waiting[UNMAP_LEVELS];
	struct list_head in_pass;
	struct rb_root requests;
	u64 next_number;
	bool armed;
	unsigned long armed_for;
	unsigned long next_report;
	struct unmap_stats stats;
	struct workqueue_struct *wq;
	struct delayed_work work;

	unsigned int hypercalls;
	unsigned int count;
	struct gnttab_unmap_grant_ref ops[UNMAP_BATCH];
	struct page *pages[UNMAP_BATCH];
	struct unmap_candidate from[UNMAP_BATCH];
};

static struct unmap_queue unmap_queue;

/* Pages that are never to be used again, as their grants are still mapped. */
static atomic_long_t unmap_leaked;

/* --- unmapping */

static int unmap_hypercall(struct gnttab_unmap_grant_ref *ops, unsigned int count)
{
	KUNIT_STATIC_STUB_REDIRECT(unmap_hypercall, ops, count);

	return HYPERVISOR_grant_table_op(GNTTABOP_unmap_grant_ref, ops, count);
}

/* If it fails, the status of the operations tells for which pages. */
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
 * The frame of another domain is still mapped at this page. It keeps its tag,
 * by which gnttab_free_pages() and gnttab_page_cache_put() know not to hand it
 * out again.
 */
static void page_leaked(struct page *page, int status)
{
	static const struct xen_page_foreign unknown = {
		.domid = DOMID_INVALID,
		.gref = INVALID_GRANT_REF,
	};
	struct xen_page_foreign *foreign = xen_page_foreign(page);

	/* A part of its mapping had failed, so it was not tagged at all. */
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
 * What the hypercall has unmapped loses its p2m entry and its tag, the rest is
 * lost. Afterwards each operation's status is GNTST_okay or the error, and the
 * tag of each page is the truth.
 *
 * Return: the number of pages that are still mapped.
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
			/* Without a tag there is no p2m entry, without a handle nothing. */
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
		 * An entry was not what we set it to. The pages next to it may be
		 * of other requests and domains: only its own page is lost.
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

/* An operation that the hypervisor did not get to has the status of an error. */
static void unmap_ops(struct gnttab_unmap_grant_ref *ops, unsigned int count)
{
	if (unmap_hypercall(ops, count))
		pr_err_ratelimited("hypercall for %u mappings of grants failed\n", count);
}

/*
 * Unmap the grants of pages that nobody can get hold of meanwhile.
 *
 * Return: the number of pages that are still mapped.
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
 * A page that could not be unmapped keeps its tag, and is not handed out again
 * when it is given to gnttab_free_pages() or gnttab_page_cache_put(). The status
 * of each operation tells which.
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
 * The test for idle pages and the hypercall are one: from here to page_thaw()
 * nobody can take a reference, as the page has none.
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
 * Unmap those pages of a range that are idle.
 *
 * Return: the number of pages that are settled; the handles of the others are
 * still valid.
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
 * @req: a request. Right before its operations, in the same array, are as many
 *       for the other mappings, those of a process.
 * @count: how many pages the request has
 *
 * One hypercall unmaps all of both kinds. But nothing is unmapped if one of the
 * pages is in use, waits, or lacks a mapping. Else all of them are settled when
 * this returns, and @req->done() is not called. A page whose other mapping could
 * not be unmapped has that error.
 *
 * The process's page table may still have the pages, but nobody may look them up
 * there.
 *
 * Context: Any. Nobody else submits pages of @req meanwhile.
 * Return: 0, -EIO if a page could not be unmapped, or -EBUSY if nothing was done.
 */
int gnttab_unmap_refs_both(struct gnttab_unmap_request *req, unsigned int count)
{
	struct gnttab_unmap_grant_ref *user_ops = req->ops - count;
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

/*
 * While a page waits, the status of its operation is positive: one more than
 * the number of seconds that the request had been pending then.
 */
static bool page_waits(const struct gnttab_unmap_grant_ref *op)
{
	/* Pairs with the release in mark_waiting(): the operation is complete. */
	return smp_load_acquire(&op->status) > 0;
}

static void mark_waiting(struct gnttab_unmap_request *req, unsigned int i, unsigned long now)
{
	unsigned long seconds = (now - READ_ONCE(req->since)) / HZ;

	/* Pairs with page_waits(): a pass may take the page from here on. */
	smp_store_release(&req->ops[i].status, 1 + min(seconds, S16_MAX - 1UL));
}

static unsigned int waited_ms(const struct gnttab_unmap_request *req, unsigned int i,
			      unsigned long now)
{
	long waited = now - READ_ONCE(req->since) - (READ_ONCE(req->ops[i].status) - 1) * HZ;

	/* A submission that is under way may have set @since a moment ago. */
	return jiffies_to_msecs(max(waited, 0));
}

static void queue_schedule(struct unmap_queue *q, unsigned long delay)
{
	KUNIT_STATIC_STUB_REDIRECT(queue_schedule, q, delay);

	mod_delayed_work(q->wq, &q->work, delay);
}

/* See to it that a pass begins when @due has come, or earlier. */
static void queue_arm(struct unmap_queue *q, unsigned long due, unsigned long now)
{
	lockdep_assert_held(&q->lock);

	if (q->armed && !time_before(due, q->armed_for))
		return;
	q->armed = true;
	q->armed_for = due;
	queue_schedule(q, time_after(due, now) ? due - now : 0);
}

static void queue_add(struct unmap_queue *q, struct gnttab_unmap_request *req,
		      unsigned long now)
{
	lockdep_assert_held(&q->lock);

	req->due = now + msecs_to_jiffies(1 << req->level);
	list_add_tail(&req->link, &q->waiting[req->level]);
	queue_arm(q, req->due, now);
}

static bool number_is_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct gnttab_unmap_request, node)->number <
	       rb_entry(b, struct gnttab_unmap_request, node)->number;
}

/* What is taken here lasts until the request leaves the queue in pass_put_back(). */
static void queue_enter(struct unmap_queue *q, struct gnttab_unmap_request *req)
{
	lockdep_assert_held(&q->lock);

	gnttab_unmap_owner_get(req->owner);
	atomic_inc(&req->owner->requests);
	__module_get(req->owner->module);
	/* A number is never used again, not even for the same request. */
	req->number = q->next_number++;
	rb_add(&req->node, &q->requests, number_is_less);
	req->deferred = 0;
	INIT_LIST_HEAD(&req->link);
}

/*
 * Mark the pages of a range that are not settled as waiting, and put the
 * request into the queue, or back to its front: pages that have just been given
 * up are more likely to become idle soon than those that have been held for
 * long.
 *
 * Marking a page and counting it are one under the lock, as a pass may be at
 * work on the request, and settles what it finds marked.
 *
 * Return: the number of pages that were marked.
 */
static unsigned int queue_defer(struct unmap_queue *q, struct gnttab_unmap_request *req,
				unsigned int first, unsigned int end, unsigned long now)
{
	unsigned int i, marked = 0;
	unsigned long flags;

	spin_lock_irqsave(&q->lock, flags);
	for (i = first; i < end; i++) {
		if (req->ops[i].handle == INVALID_GRANT_HANDLE)
			continue;
		mark_waiting(req, i, now);
		marked++;
	}
	if (!marked)
		goto out;

	if (!req->waiting && !req->in_pass) {
		queue_enter(q, req);
		req->first = first;
		req->end = end;
	}
	req->waiting += marked;
	req->deferred += marked;
	req->first = min(req->first, first);
	req->end = max(req->end, end);
	req->level = 0;
	req->grown = true;
	q->stats.deferred += marked;
	if (!req->in_pass) {
		list_del(&req->link);
		queue_add(q, req, now);
	}
	trace_grant_unmap_defer(req->owner->name, marked, req->waiting);
out:
	spin_unlock_irqrestore(&q->lock, flags);
	return marked;
}

/* Nothing is pending: tell the owner. */
static void request_complete(struct gnttab_unmap_request *req)
{
	req->done(req, atomic_xchg(&req->failed, 0));
}

/* Return: the number of pages that wait from now on. */
static unsigned int request_submit(struct unmap_queue *q, struct gnttab_unmap_request *req,
				   unsigned int first, unsigned int count)
{
	unsigned int end = first + count, waiting = 0;

	for (; first < end; first += min(end - first, UNMAP_MARK))
		waiting += queue_defer(q, req, first, min(first + UNMAP_MARK, end), jiffies);
	return waiting;
}

/*
 * Begin a submission. Its own count in @req->pending keeps the request from
 * being completed until the submission has ended.
 */
static bool request_begin(struct gnttab_unmap_request *req, unsigned int count)
{
	if (atomic_fetch_add(count + 1, &req->pending))
		return false;
	WRITE_ONCE(req->since, jiffies);
	return true;
}

static void request_end(struct gnttab_unmap_request *req, unsigned int settled)
{
	if (atomic_sub_and_test(settled + 1, &req->pending))
		request_complete(req);
}

static bool unmap_async(struct unmap_queue *q, struct gnttab_unmap_request *req,
			unsigned int first, unsigned int count)
{
	bool started = request_begin(req, count);
	unsigned int settled = unmap_idle(req, first, count);

	if (settled < count)
		request_submit(q, req, first, count);
	request_end(req, settled);
	return started;
}

static void unmap_defer(struct unmap_queue *q, struct gnttab_unmap_request *req,
			unsigned int first, unsigned int count)
{
	request_begin(req, count);
	/* There is nothing to wait for where a handle is invalid. */
	request_end(req, count - request_submit(q, req, first, count));
}

/**
 * gnttab_unmap_refs_async - unmap grants, those in use once they are idle
 * @req: a request, see there
 * @first: the first page of it to unmap
 * @count: how many, 0 to be called back at once
 *
 * Idle pages are unmapped before this returns. Nothing is allocated, and nothing
 * is waited for. @req->done() is called once, as soon as nothing of the request
 * is pending: often before this returns.
 *
 * Nobody may be able to find a page by a page table any more.
 *
 * Context: Any, also soft and hard interrupts.
 * Return: true if nothing of the request was pending before, so that
 *         @req->done() will be, or was, called for this submission; false if it
 *         will be called for this one and an earlier one together.
 */
bool gnttab_unmap_refs_async(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count)
{
	return unmap_async(&unmap_queue, req, first, count);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs_async);

/**
 * gnttab_unmap_refs_defer - let the queue unmap grants
 * @req: a request, see there
 * @first: the first page of it to unmap
 * @count: how many
 *
 * Like gnttab_unmap_refs_async(), but nothing is tried before this returns: many
 * small requests take a few hypercalls only.
 *
 * Context: Any, also soft and hard interrupts.
 */
void gnttab_unmap_refs_defer(struct gnttab_unmap_request *req,
			     unsigned int first, unsigned int count)
{
	unmap_defer(&unmap_queue, req, first, count);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_refs_defer);

/* Unmap what a pass has gathered. */
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
		WRITE_ONCE(req->ops[index].handle, INVALID_GRANT_HANDLE);
		/*
		 * From here on the page does not wait any more. Pairs with the
		 * acquire in gnttab_unmap_submitted(): it is settled then.
		 */
		smp_store_release(&req->ops[index].status, q->ops[i].status);
		req->settled++;
		if (q->ops[i].status != GNTST_okay)
			req->refused++;
	}
	q->count = 0;
}

static bool pass_should_yield(void)
{
	KUNIT_STATIC_STUB_REDIRECT(pass_should_yield);

	return need_resched();
}

/* Let others have the CPU if they want it, but keep no page frozen for so long. */
static void pass_yield(struct unmap_queue *q)
{
	if (!pass_should_yield())
		return;
	pass_flush(q);
	cond_resched();
}

/* Gather the idle ones of a few pages. Return: how many pages were looked at. */
static __always_inline unsigned int
pass_gather_step(struct unmap_queue *q, struct gnttab_unmap_request *req,
		 unsigned int first, unsigned int end)
{
	unsigned int attempts = 0;

	for (unsigned int i = first; i < end; i++) {
		if (!page_waits(&req->ops[i]))
			continue;
		attempts++;
		if (!page_freeze(req, i)) {
			req->left_first = min(req->left_first, i);
			req->left_end = i + 1;
			continue;
		}
		q->ops[q->count] = req->ops[i];
		q->ops[q->count].status = GNTST_general_error;
		q->pages[q->count] = req->pages[i];
		q->from[q->count].req = req;
		q->from[q->count].index = i;
		if (++q->count == UNMAP_BATCH)
			pass_flush(q);
	}
	return attempts;
}

/* Gather the idle pages of a request. Return: how many pages were looked at. */
static unsigned int pass_gather(struct unmap_queue *q, struct gnttab_unmap_request *req)
{
	/* A submission may extend the range: these pages, or these and more. */
	unsigned int first = READ_ONCE(req->first), end = READ_ONCE(req->end);
	unsigned int attempts = 0;

	req->settled = 0;
	req->refused = 0;
	req->left_first = end;
	req->left_end = first;
	for (; first < end; first += min(end - first, UNMAP_STEP)) {
		attempts += pass_gather_step(q, req, first, min(first + UNMAP_STEP, end));
		pass_yield(q);
	}
	return attempts;
}

/*
 * Put a request that the pass is through with back into the queue, or let it go.
 * From then on it may be gone at any time.
 */
static void pass_put_back(struct unmap_queue *q, struct gnttab_unmap_request *req,
			  unsigned long now)
{
	struct gnttab_unmap_owner *owner = req->owner;
	unsigned int settled = req->settled, refused = req->refused;
	bool last;

	if (refused)
		atomic_add(refused, &req->failed);

	spin_lock_irq(&q->lock);
	q->stats.unmapped += settled - refused;
	q->stats.failed += refused;
	list_del(&req->link);
	req->in_pass = false;
	req->waiting -= settled;
	if (!req->grown) {
		req->first = req->left_first;
		req->end = req->left_end;
		req->level = min(req->level + 1, UNMAP_LEVELS - 1);
	}
	last = !req->waiting;
	if (last) {
		rb_erase(&req->node, &q->requests);
		trace_grant_unmap_done(owner->name, req->deferred,
				       atomic_read(&req->failed),
				       jiffies_to_msecs(now - req->since));
	} else {
		queue_add(q, req, now);
	}
	spin_unlock_irq(&q->lock);

	/*
	 * If it is in the queue again, its pages are pending and keep it. If not,
	 * that is our share, or a submission is under way and completes it.
	 */
	if (settled && atomic_sub_and_test(settled, &req->pending))
		request_complete(req);

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

/* A page that waits, as it was when a walk came by. */
struct waiting_page {
	unsigned int ms;
	/* All of them, and those that are there when nobody uses it. */
	unsigned int references, idle;
	unsigned long pfn;
	struct xen_page_foreign foreign;
	char owner[sizeof_field(struct gnttab_unmap_owner, name)];
};

/**
 * struct unmap_walk - a walk over the pages that wait
 * @end: the number of the first request that is not part of it
 * @number: the number of the request that it has got to, which may be gone
 * @index: the page to look at next, if the request is not gone
 * @owner: whose pages are wanted, or NULL for all
 * @min_ms: how long they have to have been waiting
 * @now: the time, in jiffies
 * @page: the page that was found last
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

/* Begin a walk over what is in the queue now: what enters it later is left out. */
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

/* The first request from @number on. */
static struct gnttab_unmap_request *queue_find(struct unmap_queue *q, u64 number)
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

static bool walk_wants_request(const struct unmap_walk *walk,
			       const struct gnttab_unmap_request *req)
{
	/* No page has waited for longer than its request. */
	return (!walk->owner || walk->owner == req->owner) &&
	       jiffies_to_msecs(walk->now - READ_ONCE(req->since)) >= walk->min_ms;
}

static bool walk_look_at_page(struct unmap_walk *walk, const struct gnttab_unmap_request *req,
			      unsigned int i)
{
	struct waiting_page *found = &walk->page;
	struct xen_page_foreign *foreign;
	struct page *page = req->pages[i];

	if (!page_waits(&req->ops[i]))
		return false;
	found->ms = waited_ms(req, i, walk->now);
	foreign = xen_page_foreign(page);
	/* A pass may have unmapped it a moment ago. */
	if (found->ms < walk->min_ms || !foreign)
		return false;
	found->idle = idle_refs(req, i);
	/* It has no references while a pass is at it. */
	found->references = max_t(unsigned int, page_ref_count(page), found->idle);
	found->pfn = page_to_pfn(page);
	found->foreign = *foreign;
	strscpy(found->owner, req->owner->name);
	return true;
}

/*
 * Look at the next few pages.
 *
 * Return: 1 if a page was found, 0 if there is none left, or -EAGAIN if there may
 *         be more.
 */
static int walk_step(struct unmap_walk *walk, struct unmap_queue *q)
{
	struct gnttab_unmap_request *req = queue_find(q, walk->number);

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
 * Find the next page that waits, and copy what there is to know of it.
 *
 * Requests come and go, and so do passes, whenever the lock is not held, so a walk
 * keeps no pointer to a request, but a number. It goes on with the first request
 * from that number on, and with the page where it was if that is the same one. So
 * it comes by each page that waits all the time, once.
 *
 * Return: false if there is none left.
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

/* How many pages are in use, and the one that has waited for longest. */
struct unmap_survey {
	unsigned int pages;
	struct waiting_page longest;
};

/* What of an owner, or of all if NULL, has waited for @min_ms or longer? */
static void queue_survey(struct unmap_queue *q, const struct gnttab_unmap_owner *owner,
			 unsigned long now, unsigned int min_ms,
			 struct unmap_survey *survey)
{
	struct unmap_walk walk;

	memset(survey, 0, sizeof(*survey));
	walk_begin(&walk, q, owner, min_ms, now);
	while (walk_next(&walk, q)) {
		/* It is idle, or a pass is just at it. */
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

/* Once a page has waited for long, say so, and then once a minute. */
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

/* Take some requests that are due at the time @now. Return: whether there may be more. */
static bool pass_take(struct unmap_queue *q, unsigned long now)
{
	struct gnttab_unmap_request *req, *next;
	unsigned int taken = 0;

	lockdep_assert_held(&q->lock);

	for (unsigned int level = 0; level < UNMAP_LEVELS; level++) {
		list_for_each_entry_safe(req, next, &q->waiting[level], link) {
			if (time_after(req->due, now))
				break;
			if (taken++ == UNMAP_STEP)
				return true;
			list_move_tail(&req->link, &q->in_pass);
			req->in_pass = true;
			req->grown = false;
		}
	}
	return false;
}

/*
 * Try the pages of all requests that are due at the time @now, once each. There
 * is never more than one pass at a time.
 */
static void queue_pass(struct unmap_queue *q, unsigned long now)
{
	struct gnttab_unmap_request *req, *next;
	unsigned int attempts = 0, settled = 0, refused = 0;

	might_sleep();

	q->hypercalls = 0;
	spin_lock_irq(&q->lock);
	q->armed = false;
	/* What is put in meanwhile is due later. */
	while (pass_take(q, now)) {
		spin_unlock_irq(&q->lock);
		cond_resched();
		spin_lock_irq(&q->lock);
	}
	spin_unlock_irq(&q->lock);

	/* Only the pass takes requests off this list. */
	list_for_each_entry(req, &q->in_pass, link)
		attempts += pass_gather(q, req);
	pass_flush(q);

	list_for_each_entry_safe(req, next, &q->in_pass, link) {
		settled += req->settled;
		refused += req->refused;
		pass_put_back(q, req, now);
		cond_resched();
	}

	spin_lock_irq(&q->lock);
	q->stats.passes++;
	q->stats.attempts += attempts;
	q->stats.hypercalls += q->hypercalls;
	for (unsigned int level = 0; level < UNMAP_LEVELS; level++) {
		req = list_first_entry_or_null(&q->waiting[level],
					       struct gnttab_unmap_request, link);
		if (req)
			queue_arm(q, req->due, now);
	}
	spin_unlock_irq(&q->lock);

	trace_grant_unmap_pass(attempts, settled - refused, attempts - settled);
	queue_report(q, now);
}

static void unmap_work(struct work_struct *work)
{
	queue_pass(container_of(to_delayed_work(work), struct unmap_queue, work), jiffies);
}

static void queue_init(struct unmap_queue *q)
{
	spin_lock_init(&q->lock);
	for (unsigned int level = 0; level < UNMAP_LEVELS; level++)
		INIT_LIST_HEAD(&q->waiting[level]);
	INIT_LIST_HEAD(&q->in_pass);
	q->requests = RB_ROOT;
	q->next_report = jiffies;
	INIT_DELAYED_WORK(&q->work, unmap_work);
}

/* --- owners */

/**
 * gnttab_unmap_owner_create - make a name for requests, and a way to wait for them
 * @module: the module that the requests' done() is in. It cannot be unloaded
 *          while one of them is in the queue.
 * @fmt: format of the name, for the one who wants to know who holds a page:
 *       <driver>/<instance>
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
 * @owner: the owner, or NULL. It is freed with the last reference, of which each
 *         request in the queue has one.
 *
 * Context: Any.
 */
void gnttab_unmap_owner_put(struct gnttab_unmap_owner *owner)
{
	if (owner && refcount_dec_and_test(&owner->users))
		kfree(owner);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_owner_put);

static int owner_drain(struct unmap_queue *q, struct gnttab_unmap_owner *owner,
		       unsigned int timeout_ms)
{
	struct unmap_survey survey;
	long ret;

	if (!atomic_read(&owner->requests))
		return 0;

	ret = wait_event_killable_timeout(owner->drained, !atomic_read(&owner->requests),
					  msecs_to_jiffies(timeout_ms));
	if (ret > 0)
		return 0;
	if (ret < 0)
		return -EINTR;

	queue_survey(q, owner, jiffies, 0, &survey);
	/* Else the queue, or done(), takes its time. */
	if (survey.pages)
		print_survey(&survey, min(timeout_ms, survey.longest.ms));
	return -ETIMEDOUT;
}

/**
 * gnttab_unmap_drain - wait until nothing of an owner is in the queue
 * @owner: the owner, which does not submit anything meanwhile
 * @timeout_ms: how long to wait, in ms
 *
 * When it returns 0 all that was in the queue is unmapped, and done() has
 * returned. When the time is over the kernel log tells what is still in use.
 *
 * Context: Process context, sleeps.
 * Return: 0, -ETIMEDOUT, or -EINTR if the task was killed.
 */
int gnttab_unmap_drain(struct gnttab_unmap_owner *owner, unsigned int timeout_ms)
{
	return owner_drain(&unmap_queue, owner, timeout_ms);
}
EXPORT_SYMBOL_GPL(gnttab_unmap_drain);

/* --- debugfs, see Documentation/ABI/testing/debugfs-xen-grant-unmap */

#ifdef CONFIG_DEBUG_FS
/*
 * What a reader has of the list is a walk, which goes on where it was when the
 * next buffer is filled. Only the first one begins at the beginning.
 */
static void *pending_start(struct seq_file *m, loff_t *pos)
{
	struct unmap_walk *walk = m->private;

	if (!*pos) {
		walk_begin(walk, &unmap_queue, NULL, 0, jiffies);
		return SEQ_START_TOKEN;
	}
	/* The page found last did not fit into a buffer. Is it still there? */
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
	/* The lookup took a reference, while a directory has its own as long as it exists. */
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
