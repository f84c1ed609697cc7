// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of the queue that unmaps grants.
 *
 * Each test has a world of its own: a queue that no timer runs, pages, and a
 * model of the hypervisor and of the p2m. The model keeps books on each page,
 * and nothing in them comes from the code under test: whether its grant is
 * mapped, whether it has a p2m entry, who else holds it. When a test is over,
 * tags, reference counts and counters have to agree with the books.
 */

#include <kunit/test.h>
#include <linux/kthread.h>

/* Enough for a request that is marked in more than one go. */
#define WORLD_PAGES (UNMAP_MARK + 88)
/* Handles and grants are no indices, and are not mixed up with each other. */
#define FIRST_HANDLE 1000
#define FIRST_USER_HANDLE 500000
#define FIRST_GREF 0xfedc0000
/* No hypercall fails as a whole. */
#define NEVER UINT_MAX

struct test_page {
	struct page *page;
	/* What __free_pages() wants: a page may be the tail of a DMA buffer. */
	struct page *head;
	unsigned int order;
	/* References when nobody uses it, and those of its users. */
	unsigned int idle, holds;
	u64 host_addr;
	/* The books of the hypervisor and of the p2m. */
	bool mapped, user_mapped, p2m;
	/* What is to go wrong. */
	bool refuse, refuse_user, p2m_mismatch;
	/* Whether it was tagged when it was mapped, and whether it is lost. */
	bool tagged, leaked;
};

struct test_request;

/**
 * struct world - what a test has
 * @q: the queue
 * @owner: the owner of all requests
 * @clock: what the last pass of pass_over_all() took for the time
 * @pages: the pages of all requests, one after the other
 * @used: how many of them there are
 * @fail_after: hypercalls fail as a whole after that many operations
 * @during: called once, in the next hypercall
 * @during_request: what @during may want to know
 * @others_want_the_cpu: whenever a pass asks
 * @asked: how often a pass has asked
 * @on_ask: called then
 * @hypercalls: how many there were
 * @sizes: how many operations each of the first ones had
 * @operations: how many pages were unmapped
 * @order: which ones, first unmapped first
 * @leaked: how many pages were lost
 * @leaked_before: what the kernel's own counter was
 * @leaks_reported: how many leaks the kernel log was told of
 * @leak: which one was the last
 * @leak_status: and why
 * @reported: how often the kernel log was told of pages that are stuck
 * @report: what it was told last
 * @armed: the timer was armed since the last pass began
 * @scheduled: how often the timer was armed
 * @due: for when, the last time
 */
struct world {
	struct unmap_queue *q;
	struct gnttab_unmap_owner *owner;
	unsigned long clock;
	struct test_page pages[WORLD_PAGES];
	unsigned int used;

	unsigned int fail_after;
	void (*during)(struct kunit *test);
	struct test_request *during_request;
	bool others_want_the_cpu;
	unsigned int asked;
	void (*on_ask)(struct kunit *test);

	unsigned int hypercalls;
	unsigned int sizes[8];
	unsigned int operations;
	unsigned int order[2 * WORLD_PAGES];
	unsigned int leaked;
	unsigned long leaked_before;
	unsigned int leaks_reported;
	struct xen_page_foreign leak;
	int leak_status;
	unsigned int reported;
	struct unmap_survey report;
	bool armed;
	unsigned int scheduled;
	unsigned long due;
};

/* A request of a world: @done calls so far, and what the last one was told. */
struct test_request {
	struct gnttab_unmap_request req;
	struct kunit *test;
	unsigned int first, count;
	unsigned int done, failed;
	void (*on_done)(struct test_request *r);
};

static domid_t page_domid(unsigned int index)
{
	return 1 + index % 5;
}

static grant_ref_t page_gref(unsigned int index)
{
	return FIRST_GREF + index;
}

/* The machine address of a process's PTE. */
static u64 user_addr(unsigned int index)
{
	return 0x10000 + index * sizeof(pte_t);
}

/* --- the model of the hypervisor and of the p2m */

static void model_lose(struct world *w, struct test_page *p)
{
	if (p->leaked)
		return;
	p->leaked = true;
	w->leaked++;
}

static struct test_page *model_page(struct kunit *test, const struct gnttab_unmap_grant_ref *op)
{
	struct world *w = test->priv;
	unsigned int index = op->handle - FIRST_HANDLE;

	if (op->handle >= FIRST_USER_HANDLE)
		index = op->handle - FIRST_USER_HANDLE;
	KUNIT_EXPECT_LT_MSG(test, index, w->used, "handle %u was never given out", op->handle);
	return index < w->used ? &w->pages[index] : NULL;
}

static int model_unmap_user(struct kunit *test, struct test_page *p,
			    const struct gnttab_unmap_grant_ref *op)
{
	KUNIT_EXPECT_TRUE_MSG(test, p->user_mapped, "handle %u is unmapped twice", op->handle);
	KUNIT_EXPECT_EQ(test, op->host_addr, user_addr(op->handle - FIRST_USER_HANDLE));
	if (!p->user_mapped)
		return GNTST_bad_handle;
	if (p->refuse_user) {
		model_lose(test->priv, p);
		return GNTST_permission_denied;
	}
	p->user_mapped = false;
	return GNTST_okay;
}

static int model_unmap(struct kunit *test, const struct gnttab_unmap_grant_ref *op)
{
	struct test_page *p = model_page(test, op);
	struct world *w = test->priv;
	unsigned int index;

	if (!p)
		return GNTST_bad_handle;

	index = p - w->pages;
	KUNIT_EXPECT_EQ_MSG(test, page_count(p->page), 0, "page %u is not frozen", index);
	KUNIT_EXPECT_EQ_MSG(test, p->holds, 0, "page %u is in use", index);
	if (op->handle >= FIRST_USER_HANDLE)
		return model_unmap_user(test, p, op);
	KUNIT_EXPECT_TRUE_MSG(test, p->mapped, "page %u is unmapped twice", index);
	KUNIT_EXPECT_EQ(test, op->host_addr, p->host_addr);
	if (!p->mapped)
		return GNTST_bad_handle;
	if (p->refuse) {
		model_lose(w, p);
		return GNTST_bad_virt_addr;
	}
	p->mapped = false;
	w->order[w->operations++] = index;
	return GNTST_okay;
}

static int model_hypercall(struct gnttab_unmap_grant_ref *ops, unsigned int count)
{
	struct kunit *test = kunit_get_current_test();
	struct world *w = test->priv;
	void (*during)(struct kunit *test) = w->during;
	unsigned int fail_after = w->fail_after;

	if (w->hypercalls < ARRAY_SIZE(w->sizes))
		w->sizes[w->hypercalls] = count;
	w->hypercalls++;

	w->during = NULL;
	if (during)
		during(test);

	for (unsigned int i = 0; i < min(count, fail_after); i++)
		ops[i].status = model_unmap(test, &ops[i]);
	if (fail_after == NEVER)
		return 0;
	for (unsigned int i = fail_after; i < count; i++) {
		struct test_page *p = model_page(test, &ops[i]);

		if (p)
			model_lose(w, p);
	}
	return -EFAULT;
}

/* Like the real one it goes on after an entry that is not what it should be. */
static int model_p2m(struct gnttab_unmap_grant_ref *ops, struct page **pages,
		     unsigned int count)
{
	struct kunit *test = kunit_get_current_test();
	int ret = 0;

	for (unsigned int i = 0; i < count; i++) {
		struct test_page *p = model_page(test, &ops[i]);

		if (!p)
			continue;
		KUNIT_EXPECT_PTR_EQ(test, p->page, pages[i]);
		KUNIT_EXPECT_FALSE_MSG(test, p->mapped || p->user_mapped,
				       "the p2m entry goes before the mapping");
		KUNIT_EXPECT_TRUE_MSG(test, p->p2m, "there is no p2m entry");
		if (!p->p2m_mismatch) {
			p->p2m = false;
			continue;
		}
		model_lose(test->priv, p);
		ops[i].status = GNTST_general_error;
		ret = -EINVAL;
	}
	return ret;
}

/* The kernel log: a fault that a test makes up must not be taken for a real one. */
static void model_report_leak(const struct xen_page_foreign *foreign, int status)
{
	struct kunit *test = kunit_get_current_test();
	struct world *w = test->priv;

	w->leaks_reported++;
	w->leak = *foreign;
	w->leak_status = status;
}

static void model_print_survey(const struct unmap_survey *survey, unsigned int ms)
{
	struct kunit *test = kunit_get_current_test();
	struct world *w = test->priv;

	w->reported++;
	w->report = *survey;
}

/* Called with the lock of the queue held: nothing can be expected here. */
static void model_schedule(struct unmap_queue *q, unsigned long due)
{
	struct kunit *test = kunit_get_current_test();
	struct world *w = test->priv;

	w->armed = true;
	w->scheduled++;
	w->due = due;
}

static bool model_should_yield(void)
{
	struct kunit *test = kunit_get_current_test();
	struct world *w = test->priv;

	w->asked++;
	if (w->on_ask)
		w->on_ask(test);
	return w->others_want_the_cpu;
}

/* --- pages and requests */

static void page_tag(struct world *w, unsigned int index)
{
	struct test_page *p = &w->pages[index];
	struct xen_page_foreign *foreign;

	SetPageForeign(p->page);
	foreign = xen_page_foreign(p->page);
	foreign->domid = page_domid(index);
	foreign->gref = page_gref(index);
	p->tagged = true;
	p->p2m = true;
}

/* Map a grant onto page @i of the request. */
static void page_map(struct test_request *r, unsigned int i)
{
	struct world *w = r->test->priv;
	struct test_page *p = &w->pages[r->first + i];

	gnttab_set_unmap_op(&r->req.ops[i], (unsigned long)page_address(p->page),
			    GNTMAP_host_map, FIRST_HANDLE + r->first + i);
	p->host_addr = r->req.ops[i].host_addr;
	p->mapped = true;
	page_tag(w, r->first + i);
}

static struct test_page *page_of(struct test_request *r, unsigned int i)
{
	struct world *w = r->test->priv;

	return &w->pages[r->first + i];
}

/* Map it for a process, too. */
static void page_map_user(struct test_request *r, unsigned int i)
{
	gnttab_set_unmap_op(&r->req.ops[i] - r->count, user_addr(r->first + i),
			    GNTMAP_host_map | GNTMAP_contains_pte,
			    FIRST_USER_HANDLE + r->first + i);
	page_of(r, i)->user_mapped = true;
}

/* As if a part of the mapping had failed: there is a handle, but no tag. */
static void page_untag(struct test_request *r, unsigned int i)
{
	struct world *w = r->test->priv;
	struct test_page *p = &w->pages[r->first + i];

	ClearPageForeign(p->page);
	p->tagged = false;
	p->p2m = false;
}

static void hold(struct test_request *r, unsigned int i)
{
	struct test_page *p = page_of(r, i);

	get_page(p->page);
	p->holds++;
}

static void release(struct test_request *r, unsigned int i)
{
	struct test_page *p = page_of(r, i);

	p->holds--;
	put_page(p->page);
}

static void hold_all(struct test_request *r)
{
	for (unsigned int i = 0; i < r->count; i++)
		hold(r, i);
}

static void release_all(struct test_request *r)
{
	for (unsigned int i = 0; i < r->count; i++)
		release(r, i);
}

static void test_done(struct gnttab_unmap_request *req, unsigned int failed)
{
	struct test_request *r = container_of(req, struct test_request, req);

	r->done++;
	r->failed = failed;
	if (r->on_done)
		r->on_done(r);
}

/* Another page for a request, @index of the world. */
static struct page *world_page(struct kunit *test, unsigned int index)
{
	struct world *w = test->priv;
	struct test_page *p = &w->pages[index];

	p->page = alloc_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, p->page);
	p->head = p->page;
	p->idle = 1;
	w->used = index + 1;
	KUNIT_ASSERT_EQ(test, gnttab_pages_set_private(1, &p->page), 0);
	return p->page;
}

/* A request of @count mapped pages, which nobody uses. */
static struct test_request *request_new(struct kunit *test, unsigned int count)
{
	struct world *w = test->priv;
	struct test_request *r = kunit_kzalloc(test, sizeof(*r), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, r);
	KUNIT_ASSERT_LE(test, w->used + count, WORLD_PAGES);
	r->test = test;
	r->first = w->used;
	r->count = count;
	r->req.ops = kunit_kcalloc(test, 2 * count, sizeof(*r->req.ops), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, r->req.ops);
	/* The first half is for what page_map_user() maps. */
	for (unsigned int i = 0; i < count; i++)
		(r->req.ops++)->handle = INVALID_GRANT_HANDLE;
	r->req.pages = kunit_kcalloc(test, count, sizeof(*r->req.pages), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, r->req.pages);
	r->req.waiting_since = kunit_kcalloc(test, count, sizeof(*r->req.waiting_since),
					     GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, r->req.waiting_since);
	r->req.owner = w->owner;
	r->req.done = test_done;
	gnttab_unmap_request_init(&r->req);
	for (unsigned int i = 0; i < count; i++) {
		r->req.pages[i] = world_page(test, r->first + i);
		page_map(r, i);
	}
	return r;
}

/* The same, with all pages mapped for a process, too. */
static struct test_request *request_new_both(struct kunit *test, unsigned int count)
{
	struct test_request *r = request_new(test, count);

	for (unsigned int i = 0; i < count; i++)
		page_map_user(r, i);
	return r;
}

static bool submit(struct test_request *r, unsigned int first, unsigned int count)
{
	return gnttab_unmap_refs_async(&r->req, first, count);
}

static bool submit_all(struct test_request *r)
{
	return submit(r, 0, r->count);
}

/* A submission whose pages wait in any case, by the clock of the test. */
static void defer_at(struct test_request *r, unsigned int first, unsigned int count,
		     unsigned long now)
{
	struct world *w = r->test->priv;

	submission_begin(&r->req, count);
	queue_defer(w->q, &r->req, first, first + count, now);
	submission_end(&r->req, 0);
}

static void run_pass(struct world *w, unsigned long now)
{
	w->armed = false;
	queue_pass(w->q, now);
}

/* A pass at a time when everything that waits is due: a second after the last. */
static void pass_over_all(struct kunit *test)
{
	struct world *w = test->priv;

	if (time_before(w->clock, jiffies))
		w->clock = jiffies;
	w->clock += HZ;
	run_pass(w, w->clock);
}

static unsigned long delay_of(unsigned int level)
{
	return msecs_to_jiffies(1 << level);
}

/* --- what is expected of a page */

static void expect_unmapped(struct test_request *r, unsigned int i)
{
	struct test_page *p = page_of(r, i);

	KUNIT_EXPECT_FALSE_MSG(r->test, p->mapped, "page %u", i);
	KUNIT_EXPECT_FALSE_MSG(r->test, p->p2m, "page %u", i);
	KUNIT_EXPECT_NULL_MSG(r->test, xen_page_foreign(p->page), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, r->req.ops[i].handle, INVALID_GRANT_HANDLE, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, r->req.ops[i].status, GNTST_okay, "page %u", i);
}

/* The tag of a page says what the books say, and so do its references. */
static void expect_books(struct kunit *test, unsigned int index)
{
	struct world *w = test->priv;
	struct test_page *p = &w->pages[index];
	struct xen_page_foreign *foreign = xen_page_foreign(p->page);

	KUNIT_EXPECT_EQ_MSG(test, page_count(p->page), p->idle + p->holds, "page %u", index);
	KUNIT_EXPECT_TRUE_MSG(test, PagePrivate(p->page), "page %u", index);
	KUNIT_EXPECT_EQ_MSG(test, !!foreign, p->leaked || (p->mapped && p->tagged),
			    "page %u", index);
	if (!foreign)
		return;
	KUNIT_EXPECT_EQ_MSG(test, foreign->domid, p->tagged ? page_domid(index) : DOMID_INVALID,
			    "page %u", index);
	KUNIT_EXPECT_EQ_MSG(test, foreign->gref, p->tagged ? page_gref(index) : INVALID_GRANT_REF,
			    "page %u", index);
}

static void expect_both_unmapped(struct test_request *r, unsigned int i)
{
	struct gnttab_unmap_grant_ref *user_op = &r->req.ops[i] - r->count;

	expect_unmapped(r, i);
	KUNIT_EXPECT_FALSE_MSG(r->test, page_of(r, i)->user_mapped, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, user_op->handle, INVALID_GRANT_HANDLE, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, user_op->status, GNTST_okay, "page %u", i);
}

/* Not even tried: neither the hypervisor nor the queue have heard of it. */
static void expect_both_mapped(struct test_request *r, unsigned int i)
{
	struct gnttab_unmap_grant_ref *user_op = &r->req.ops[i] - r->count;

	KUNIT_EXPECT_TRUE_MSG(r->test, page_of(r, i)->mapped, "page %u", i);
	KUNIT_EXPECT_TRUE_MSG(r->test, page_of(r, i)->user_mapped, "page %u", i);
	KUNIT_EXPECT_FALSE_MSG(r->test, gnttab_unmap_submitted(&r->req, i), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, user_op->handle, FIRST_USER_HANDLE + r->first + i,
			    "page %u", i);
	expect_books(r->test, r->first + i);
}

static void expect_waiting(struct test_request *r, unsigned int i)
{
	struct test_page *p = page_of(r, i);

	KUNIT_EXPECT_TRUE_MSG(r->test, p->mapped, "page %u", i);
	KUNIT_EXPECT_TRUE_MSG(r->test, page_waits(&r->req, i), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, r->req.ops[i].handle, FIRST_HANDLE + r->first + i,
			    "page %u", i);
}

static void expect_leaked(struct test_request *r, unsigned int i, int status)
{
	struct test_page *p = page_of(r, i);

	KUNIT_EXPECT_TRUE_MSG(r->test, p->leaked, "page %u", i);
	KUNIT_EXPECT_NOT_NULL_MSG(r->test, xen_page_foreign(p->page), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, r->req.ops[i].handle, INVALID_GRANT_HANDLE, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(r->test, r->req.ops[i].status, status, "page %u", i);
}

static void expect_done(struct test_request *r, unsigned int done, unsigned int failed)
{
	KUNIT_EXPECT_EQ(r->test, r->done, done);
	KUNIT_EXPECT_EQ(r->test, r->failed, failed);
}

/* Nothing is left in the queue, and nothing of it anywhere else. */
static void expect_quiet(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_EXPECT_TRUE(test, RB_EMPTY_ROOT(&w->q->waiting.rb_root));
	KUNIT_EXPECT_TRUE(test, list_empty(&w->q->in_pass));
	KUNIT_EXPECT_TRUE(test, RB_EMPTY_ROOT(&w->q->requests));
	KUNIT_EXPECT_EQ(test, w->q->count, 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&w->owner->requests), 0);
	KUNIT_EXPECT_EQ(test, refcount_read(&w->owner->users), 1);
	KUNIT_EXPECT_EQ(test, w->q->stats.deferred, w->q->stats.unmapped + w->q->stats.failed);
}

/* --- the world */

static int world_init(struct kunit *test)
{
	struct world *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, w);
	w->q = kunit_kzalloc(test, sizeof(*w->q), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, w->q);
	queue_init(w->q);
	w->owner = gnttab_unmap_owner_create(THIS_MODULE, "test/%u", 1);
	KUNIT_ASSERT_NOT_NULL(test, w->owner);
	w->owner->queue = w->q;
	w->clock = jiffies;
	w->fail_after = NEVER;
	w->leaked_before = atomic_long_read(&unmap_leaked);
	test->priv = w;

	kunit_activate_static_stub(test, unmap_hypercall, model_hypercall);
	kunit_activate_static_stub(test, unmap_p2m, model_p2m);
	kunit_activate_static_stub(test, report_leak, model_report_leak);
	kunit_activate_static_stub(test, queue_schedule, model_schedule);
	kunit_activate_static_stub(test, print_survey, model_print_survey);
	kunit_activate_static_stub(test, pass_should_yield, model_should_yield);
	return 0;
}

static void world_exit(struct kunit *test)
{
	struct world *w = test->priv;

	if (!w)
		return;
	for (unsigned int i = 0; i < w->used; i++) {
		struct test_page *p = &w->pages[i];

		expect_books(test, i);
		/* Who forgets a page that is frozen does not get it freed. */
		if (page_count(p->page) != p->idle + p->holds)
			continue;
		ClearPageForeign(p->page);
		gnttab_pages_clear_private(1, &p->page);
		set_page_private(p->page, 0);
		for (unsigned int j = p->idle ? 1 : 0; j < p->idle + p->holds; j++)
			put_page(p->page);
		__free_pages(p->head, p->order);
	}
	expect_quiet(test);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&unmap_leaked) - w->leaked_before, w->leaked);
	KUNIT_EXPECT_EQ(test, w->leaks_reported, w->leaked);
	gnttab_unmap_owner_put(w->owner);
}

/* --- idle and busy pages */

static void idle_pages_are_unmapped_at_once(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 5);

	KUNIT_EXPECT_TRUE(test, submit_all(r));
	for (unsigned int i = 0; i < r->count; i++)
		expect_unmapped(r, i);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->operations, 5);
	KUNIT_EXPECT_EQ(test, w->scheduled, 0);
	KUNIT_EXPECT_EQ(test, w->q->stats.deferred, 0);
}

static void only_the_pages_submitted_are_unmapped(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 5);

	submit(r, 1, 3);
	KUNIT_EXPECT_EQ(test, w->operations, 3);
	KUNIT_EXPECT_TRUE(test, page_of(r, 0)->mapped);
	KUNIT_EXPECT_TRUE(test, page_of(r, 4)->mapped);
	expect_done(r, 1, 0);

	/* Those that were unmapped are left out now. */
	submit_all(r);
	KUNIT_EXPECT_EQ(test, w->operations, 5);
	expect_done(r, 2, 0);
}

static void busy_page_waits_and_the_others_do_not(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	hold(r, 1);
	KUNIT_EXPECT_TRUE(test, submit_all(r));
	expect_unmapped(r, 0);
	expect_waiting(r, 1);
	expect_unmapped(r, 2);
	expect_books(test, 1);
	expect_done(r, 0, 0);
	KUNIT_EXPECT_EQ(test, w->scheduled, 1);
	KUNIT_EXPECT_EQ(test, w->due, r->req.due);

	release(r, 1);
	pass_over_all(test);
}

static void busy_page_is_unmapped_once_it_is_idle(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	hold(r, 0);
	submit_all(r);
	pass_over_all(test);
	expect_waiting(r, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);
	expect_done(r, 0, 0);

	release(r, 0);
	expect_waiting(r, 0);
	pass_over_all(test);
	expect_unmapped(r, 0);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);

	pass_over_all(test);
	expect_done(r, 1, 0);
}

static void busy_page_that_is_held_twice_waits_for_both(struct kunit *test)
{
	struct test_request *r = request_new(test, 1);

	hold(r, 0);
	hold(r, 0);
	submit_all(r);
	release(r, 0);
	pass_over_all(test);
	expect_waiting(r, 0);

	release(r, 0);
	pass_over_all(test);
	expect_unmapped(r, 0);
}

static void pages_of_a_request_are_settled_one_by_one(struct kunit *test)
{
	static const unsigned int order[] = { 2, 1, 3, 0 };
	struct test_request *r = request_new(test, 4);

	hold_all(r);
	submit_all(r);
	for (unsigned int i = 0; i < ARRAY_SIZE(order); i++) {
		expect_waiting(r, order[i]);
		expect_done(r, 0, 0);
		release(r, order[i]);
		pass_over_all(test);
		expect_unmapped(r, order[i]);
		KUNIT_EXPECT_EQ(test, r->req.waiting, 3 - i);
	}
	expect_done(r, 1, 0);
}

static void expect_submitted(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_EXPECT_TRUE(test, gnttab_unmap_submitted(&w->during_request->req, 0));
}

/* Waiting, in a pass, unmapped or leaked: it is not to be submitted once more. */
static void page_counts_as_submitted_until_it_is_mapped_again(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	for (unsigned int i = 0; i < r->count; i++)
		KUNIT_EXPECT_FALSE(test, gnttab_unmap_submitted(&r->req, i));
	hold(r, 0);
	page_of(r, 2)->refuse = true;
	submit_all(r);
	for (unsigned int i = 0; i < r->count; i++)
		KUNIT_EXPECT_TRUE(test, gnttab_unmap_submitted(&r->req, i));

	release(r, 0);
	w->during_request = r;
	w->during = expect_submitted;
	pass_over_all(test);
	KUNIT_EXPECT_NULL(test, w->during);
	expect_submitted(test);
	expect_done(r, 1, 1);

	page_map(r, 0);
	KUNIT_EXPECT_FALSE(test, gnttab_unmap_submitted(&r->req, 0));
	submit(r, 0, 1);
	expect_submitted(test);
}

/* More than are marked in one go. */
static void large_request_is_unmapped_in_full(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, WORLD_PAGES);

	hold_all(r);
	submit_all(r);
	for (unsigned int i = 0; i < r->count; i++)
		expect_waiting(r, i);
	release_all(r);
	pass_over_all(test);
	for (unsigned int i = 0; i < r->count; i++)
		expect_unmapped(r, i);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, DIV_ROUND_UP(WORLD_PAGES, UNMAP_BATCH));
}

static void try_to_get_the_page(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_EXPECT_FALSE(test, get_page_unless_zero(page_of(w->during_request, 0)->page));
}

static void page_is_frozen_during_the_hypercall(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	w->during_request = r;
	w->during = try_to_get_the_page;
	submit_all(r);
	KUNIT_EXPECT_NULL(test, w->during);
	expect_unmapped(r, 0);

	page_map(r, 0);
	hold(r, 0);
	submit_all(r);
	release(r, 0);
	w->during = try_to_get_the_page;
	pass_over_all(test);
	KUNIT_EXPECT_NULL(test, w->during);
	expect_unmapped(r, 0);
}

/* --- pages that a process has mapped, too */

static int unmap_both(struct test_request *r, unsigned int count)
{
	return gnttab_unmap_refs_both(&r->req, r->req.ops - count, count);
}

static void both_mappings_of_idle_pages_go_in_one_hypercall(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 5);

	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), 0);
	for (unsigned int i = 0; i < r->count; i++)
		expect_both_unmapped(r, i);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->sizes[0], 10);
	/* It returns when all is done. */
	expect_done(r, 0, 0);
}

static void both_mappings_stay_where_one_page_is_busy(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 4);

	/* The first one, one in between, the last one. */
	for (unsigned int busy = 0; busy < r->count; busy++) {
		hold(r, busy);
		KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EBUSY);
		for (unsigned int i = 0; i < r->count; i++)
			expect_both_mapped(r, i);
		release(r, busy);
	}
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);

	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), 0);
	for (unsigned int i = 0; i < r->count; i++)
		expect_both_unmapped(r, i);
}

static void both_mappings_stay_where_one_was_never_made(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *no_user = request_new(test, 1);
	struct test_request *no_kernel = request_new_both(test, 2);

	KUNIT_EXPECT_EQ(test, unmap_both(no_user, 1), -EBUSY);
	expect_books(test, no_user->first);

	no_kernel->req.ops[1].handle = INVALID_GRANT_HANDLE;
	KUNIT_EXPECT_EQ(test, unmap_both(no_kernel, 2), -EBUSY);
	expect_both_mapped(no_kernel, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);

	submit_all(no_user);
	expect_unmapped(no_user, 0);
	no_kernel->req.ops[1].handle = FIRST_HANDLE + no_kernel->first + 1;
	KUNIT_EXPECT_EQ(test, unmap_both(no_kernel, 2), 0);
}

static void both_mappings_stay_where_a_page_waits(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 2);

	hold(r, 1);
	submit(r, 1, 1);
	release(r, 1);
	KUNIT_EXPECT_EQ(test, unmap_both(r, 2), -EBUSY);
	expect_both_mapped(r, 0);
	expect_waiting(r, 1);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);

	/* As the owner does it: the process's mapping first. */
	page_of(r, 1)->user_mapped = false;
	pass_over_all(test);
	expect_unmapped(r, 1);
	expect_done(r, 1, 0);
}

static void page_that_stays_mapped_for_a_process_keeps_its_tag(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 3);

	page_of(r, 1)->refuse_user = true;
	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EIO);
	expect_both_unmapped(r, 0);
	expect_leaked(r, 1, GNTST_permission_denied);
	KUNIT_EXPECT_TRUE(test, page_of(r, 1)->p2m);
	KUNIT_EXPECT_EQ(test, (&r->req.ops[1] - r->count)->status, GNTST_permission_denied);
	expect_both_unmapped(r, 2);
	KUNIT_EXPECT_EQ(test, w->leaked, 1);
}

static void page_that_stays_mapped_for_the_kernel_keeps_its_tag(struct kunit *test)
{
	struct test_request *r = request_new_both(test, 3);

	page_of(r, 0)->refuse = true;
	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EIO);
	expect_leaked(r, 0, GNTST_bad_virt_addr);
	KUNIT_EXPECT_EQ(test, (&r->req.ops[0] - r->count)->status, GNTST_okay);
	expect_both_unmapped(r, 1);
	expect_both_unmapped(r, 2);
}

static void page_is_lost_once_if_neither_mapping_goes(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 2);

	page_of(r, 1)->refuse_user = true;
	page_of(r, 1)->refuse = true;
	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EIO);
	expect_both_unmapped(r, 0);
	expect_leaked(r, 1, GNTST_permission_denied);
	KUNIT_EXPECT_EQ(test, w->leaks_reported, 1);
}

static void hypercall_for_both_that_fails_halfway_loses_the_rest(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 4);

	/* All of the process's, and two of the kernel's. */
	w->fail_after = 6;
	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EIO);
	expect_both_unmapped(r, 0);
	expect_both_unmapped(r, 1);
	expect_leaked(r, 2, GNTST_general_error);
	expect_leaked(r, 3, GNTST_general_error);
}

static void hypercall_for_both_that_does_not_reach_the_kernels_loses_all(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new_both(test, 3);

	w->fail_after = 2;
	KUNIT_EXPECT_EQ(test, unmap_both(r, r->count), -EIO);
	for (unsigned int i = 0; i < r->count; i++)
		expect_leaked(r, i, GNTST_general_error);
}

/* --- references that the owner itself has */

static void page_with_noted_references_is_idle_when_it_has_those(struct kunit *test)
{
	static const unsigned int refs[] = { 2, 1 };
	struct test_request *r = request_new(test, 2);

	r->req.refs = refs;
	get_page(page_of(r, 0)->page);
	page_of(r, 0)->idle = 2;
	hold_all(r);
	submit_all(r);
	expect_waiting(r, 0);
	expect_waiting(r, 1);

	release_all(r);
	pass_over_all(test);
	expect_unmapped(r, 0);
	expect_unmapped(r, 1);
	expect_books(test, 0);

	page_map(r, 0);
	submit(r, 0, 1);
	expect_unmapped(r, 0);
}

/* Whoever was there when the count was noted may not be the one who is now. */
static void page_with_less_than_the_noted_references_waits(struct kunit *test)
{
	static const unsigned int refs[] = { 2 };
	struct test_request *r = request_new(test, 1);

	r->req.refs = refs;
	submit_all(r);
	expect_waiting(r, 0);

	get_page(page_of(r, 0)->page);
	page_of(r, 0)->idle = 2;
	pass_over_all(test);
	expect_unmapped(r, 0);
}

/* As dma_alloc_coherent() makes them: the second page has no references. */
static void tail_page_is_idle_without_references(struct kunit *test)
{
	static const unsigned int refs[] = { 0 };
	struct test_request *r = request_new(test, 1);
	struct test_page *p = page_of(r, 0);
	struct page *pages = alloc_pages(GFP_KERNEL, 1);

	KUNIT_ASSERT_NOT_NULL(test, pages);
	page_untag(r, 0);
	gnttab_pages_clear_private(1, &p->page);
	__free_page(p->page);
	p->head = pages;
	p->order = 1;
	p->idle = 0;
	p->page = pages + 1;
	r->req.pages[0] = p->page;
	r->req.refs = refs;
	KUNIT_ASSERT_EQ(test, gnttab_pages_set_private(1, &p->page), 0);

	page_map(r, 0);
	submit_all(r);
	expect_unmapped(r, 0);
	KUNIT_EXPECT_EQ(test, page_count(p->page), 0);

	page_map(r, 0);
	set_page_count(p->page, 1);
	submit_all(r);
	expect_waiting(r, 0);
	set_page_count(p->page, 0);
	pass_over_all(test);
	expect_unmapped(r, 0);
}

/* --- failures */

static void whole_hypercall_failure_keeps_every_tag(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	w->fail_after = 0;
	KUNIT_EXPECT_TRUE(test, submit_all(r));
	for (unsigned int i = 0; i < r->count; i++)
		expect_leaked(r, i, GNTST_general_error);
	expect_done(r, 1, 3);
	KUNIT_EXPECT_EQ(test, w->leaked, 3);
}

static void whole_hypercall_failure_of_a_pass_keeps_every_tag(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	hold_all(r);
	submit_all(r);
	release_all(r);
	w->fail_after = 0;
	pass_over_all(test);
	for (unsigned int i = 0; i < r->count; i++)
		expect_leaked(r, i, GNTST_general_error);
	expect_done(r, 1, 3);
	KUNIT_EXPECT_EQ(test, w->q->stats.failed, 3);
}

static void operations_before_a_hypercall_failed_are_counted_as_unmapped(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *at_once = request_new(test, 4), *later = request_new(test, 4);

	w->fail_after = 3;
	submit_all(at_once);
	hold_all(later);
	submit_all(later);
	release_all(later);
	pass_over_all(test);
	for (unsigned int i = 0; i < 3; i++) {
		expect_unmapped(at_once, i);
		expect_unmapped(later, i);
	}
	expect_leaked(at_once, 3, GNTST_general_error);
	expect_leaked(later, 3, GNTST_general_error);
	expect_done(at_once, 1, 1);
	expect_done(later, 1, 1);
}

static void refused_page_keeps_its_tag_and_is_counted_as_leaked(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	page_of(r, 1)->refuse = true;
	submit_all(r);
	expect_unmapped(r, 0);
	expect_leaked(r, 1, GNTST_bad_virt_addr);
	expect_unmapped(r, 2);
	expect_done(r, 1, 1);
	KUNIT_EXPECT_EQ(test, w->leaked, 1);
	KUNIT_EXPECT_EQ(test, w->leak.domid, page_domid(1));
	KUNIT_EXPECT_EQ(test, w->leak.gref, page_gref(1));
	KUNIT_EXPECT_EQ(test, w->leak_status, GNTST_bad_virt_addr);
}

static void refused_page_of_the_queue_is_counted_for_its_request_only(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *good = request_new(test, 2), *bad = request_new(test, 2);

	hold_all(good);
	hold_all(bad);
	submit_all(good);
	submit_all(bad);
	release_all(good);
	release_all(bad);
	page_of(bad, 0)->refuse = true;
	pass_over_all(test);
	expect_done(good, 1, 0);
	expect_done(bad, 1, 1);
	expect_leaked(bad, 0, GNTST_bad_virt_addr);
	expect_unmapped(bad, 1);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->q->stats.unmapped, 3);
	KUNIT_EXPECT_EQ(test, w->q->stats.failed, 1);
}

static void p2m_mismatch_fails_that_page_alone(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 7);

	/* The refused page splits them in two runs. */
	page_of(r, 1)->p2m_mismatch = true;
	page_of(r, 3)->refuse = true;
	page_of(r, 4)->p2m_mismatch = true;
	page_of(r, 6)->p2m_mismatch = true;
	submit_all(r);
	expect_unmapped(r, 0);
	expect_leaked(r, 1, GNTST_general_error);
	expect_unmapped(r, 2);
	expect_leaked(r, 3, GNTST_bad_virt_addr);
	expect_leaked(r, 4, GNTST_general_error);
	expect_unmapped(r, 5);
	expect_leaked(r, 6, GNTST_general_error);
	expect_done(r, 1, 4);
	KUNIT_EXPECT_EQ(test, w->leaks_reported, 4);
	KUNIT_EXPECT_EQ(test, w->leak.domid, page_domid(6));
	KUNIT_EXPECT_EQ(test, w->leak.gref, page_gref(6));
	KUNIT_EXPECT_EQ(test, w->leak_status, GNTST_general_error);
}

static void p2m_mismatch_in_a_pass_is_counted_for_its_request_only(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *good = request_new(test, 2), *bad = request_new(test, 2);

	hold_all(good);
	hold_all(bad);
	submit_all(good);
	submit_all(bad);
	release_all(good);
	release_all(bad);
	page_of(bad, 0)->p2m_mismatch = true;
	pass_over_all(test);
	expect_unmapped(good, 0);
	expect_unmapped(good, 1);
	expect_done(good, 1, 0);
	expect_leaked(bad, 0, GNTST_general_error);
	expect_unmapped(bad, 1);
	expect_done(bad, 1, 1);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->q->stats.unmapped, 3);
	KUNIT_EXPECT_EQ(test, w->q->stats.failed, 1);
}

static void page_without_a_tag_has_no_p2m_entry_to_clear(struct kunit *test)
{
	struct test_request *r = request_new(test, 3);

	page_untag(r, 1);
	submit_all(r);
	for (unsigned int i = 0; i < r->count; i++)
		expect_unmapped(r, i);
	expect_done(r, 1, 0);
}

static void page_without_a_tag_gets_one_when_it_is_refused(struct kunit *test)
{
	struct test_request *r = request_new(test, 1);

	page_untag(r, 0);
	page_of(r, 0)->refuse = true;
	submit_all(r);
	expect_leaked(r, 0, GNTST_bad_virt_addr);
	expect_done(r, 1, 1);
}

/* Some fail at once and some in a pass: done() hears of all of them, once. */
static void failures_add_up_until_done_is_called(struct kunit *test)
{
	struct test_request *r = request_new(test, 3);

	page_of(r, 0)->refuse = true;
	page_of(r, 1)->refuse = true;
	hold(r, 1);
	hold(r, 2);
	submit_all(r);
	release(r, 1);
	pass_over_all(test);
	expect_done(r, 0, 0);
	release(r, 2);
	pass_over_all(test);
	expect_done(r, 1, 2);

	page_map(r, 2);
	submit(r, 2, 1);
	expect_done(r, 2, 0);
}

static void unmap_refs_tells_that_a_page_failed(struct kunit *test)
{
	struct test_request *r = request_new(test, 2);
	struct gnttab_unmap_grant_ref *ops = r->req.ops;

	/* Its caller knows that nobody uses the pages: it does not freeze any. */
	for (unsigned int i = 0; i < r->count; i++)
		KUNIT_ASSERT_TRUE(test, page_freeze(&r->req, i));
	page_of(r, 1)->refuse = true;
	KUNIT_EXPECT_EQ(test, gnttab_unmap_refs(ops, r->req.pages, 1), 0);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_refs(ops + 1, r->req.pages + 1, 1), -EIO);
	for (unsigned int i = 0; i < r->count; i++)
		page_thaw(&r->req, i);
	KUNIT_EXPECT_EQ(test, ops[0].status, GNTST_okay);
	KUNIT_EXPECT_EQ(test, ops[1].status, GNTST_bad_virt_addr);
}

/* --- done() */

static void done_runs_once_for_all_ranges_pending(struct kunit *test)
{
	struct test_request *r = request_new(test, 4);

	hold(r, 0);
	hold(r, 3);
	KUNIT_EXPECT_TRUE(test, submit(r, 0, 1));
	KUNIT_EXPECT_FALSE(test, submit(r, 3, 1));
	/* These are idle: they do not wait, but done() does. */
	KUNIT_EXPECT_FALSE(test, submit(r, 1, 2));
	expect_unmapped(r, 1);
	expect_unmapped(r, 2);
	expect_done(r, 0, 0);

	release(r, 0);
	pass_over_all(test);
	expect_unmapped(r, 0);
	expect_done(r, 0, 0);

	release(r, 3);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

static void submit_again(struct test_request *r)
{
	if (r->done > 1)
		return;
	for (unsigned int i = 0; i < r->count; i++)
		page_map(r, i);
	KUNIT_EXPECT_TRUE(r->test, submit_all(r));
}

static void done_may_submit_the_same_request_again(struct kunit *test)
{
	struct test_request *r = request_new(test, 2);

	r->on_done = submit_again;
	submit_all(r);
	expect_done(r, 2, 0);

	/* And from a pass. */
	r->done = 0;
	for (unsigned int i = 0; i < r->count; i++)
		page_map(r, i);
	hold(r, 1);
	submit_all(r);
	release(r, 1);
	pass_over_all(test);
	expect_done(r, 2, 0);
	expect_unmapped(r, 0);
	expect_unmapped(r, 1);
}

static void submit_again_with_a_busy_page(struct test_request *r)
{
	if (r->done > 1)
		return;
	page_map(r, 0);
	hold(r, 0);
	KUNIT_EXPECT_TRUE(r->test, submit_all(r));
	expect_waiting(r, 0);
}

static void request_that_done_submits_waits_in_the_queue_again(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	r->on_done = submit_again_with_a_busy_page;
	hold(r, 0);
	submit_all(r);
	release(r, 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
	expect_waiting(r, 0);
	KUNIT_EXPECT_EQ(test, r->req.delay_ms, UNMAP_MIN_DELAY_MS);
	KUNIT_EXPECT_EQ(test, atomic_read(&w->owner->requests), 1);
	KUNIT_EXPECT_EQ(test, refcount_read(&w->owner->users), 2);
	KUNIT_EXPECT_TRUE(test, w->armed);

	release(r, 0);
	pass_over_all(test);
	expect_done(r, 2, 0);
}

/* What is freed and used again does not look like a request any more. */
static void free_the_request(struct test_request *r)
{
	memset(&r->req, POISON_FREE, sizeof(r->req));
}

static void expect_left_alone(struct test_request *r)
{
	KUNIT_EXPECT_NULL(r->test, memchr_inv(&r->req, POISON_FREE, sizeof(r->req)));
}

static void done_may_free_the_request(struct kunit *test)
{
	struct test_request *at_once = request_new(test, 1);
	struct test_request *first = request_new(test, 1), *second = request_new(test, 1);

	at_once->on_done = free_the_request;
	submit_all(at_once);
	expect_done(at_once, 1, 0);
	expect_left_alone(at_once);

	/* The pass goes on to the second one. */
	first->on_done = free_the_request;
	second->on_done = free_the_request;
	hold(first, 0);
	hold(second, 0);
	submit_all(first);
	submit_all(second);
	release(first, 0);
	release(second, 0);
	pass_over_all(test);
	expect_done(first, 1, 0);
	expect_done(second, 1, 0);
	expect_left_alone(first);
	expect_left_alone(second);
}

static void nothing_to_unmap_completes_at_once(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);

	KUNIT_EXPECT_TRUE(test, submit(r, 0, 0));
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);

	submit_all(r);
	expect_done(r, 2, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);

	/* All handles are invalid now. */
	KUNIT_EXPECT_TRUE(test, submit_all(r));
	expect_done(r, 3, 0);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->scheduled, 0);
}

static void empty_range_of_a_waiting_request_does_not_complete_it(struct kunit *test)
{
	struct test_request *r = request_new(test, 1);

	hold(r, 0);
	submit_all(r);
	KUNIT_EXPECT_FALSE(test, submit(r, 0, 0));
	expect_done(r, 0, 0);
	release(r, 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

/* --- deferring without a try */

static void deferred_page_is_not_tried_before_a_pass(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);

	gnttab_unmap_refs_defer(&r->req, 0, 2);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);
	expect_waiting(r, 0);
	expect_waiting(r, 1);
	expect_done(r, 0, 0);

	pass_over_all(test);
	expect_unmapped(r, 0);
	expect_unmapped(r, 1);
	expect_done(r, 1, 0);
}

static void deferred_page_with_an_invalid_handle_is_skipped(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);

	submit(r, 1, 1);
	expect_done(r, 1, 0);
	gnttab_unmap_refs_defer(&r->req, 0, 3);
	pass_over_all(test);
	expect_unmapped(r, 0);
	expect_unmapped(r, 2);
	KUNIT_EXPECT_EQ(test, w->operations, 3);
	expect_done(r, 2, 0);

	/* None is left: nothing waits, and nobody else will call done(). */
	gnttab_unmap_refs_defer(&r->req, 0, 3);
	expect_done(r, 3, 0);
}

/* More than begin to wait in one go. */
static void large_request_is_deferred_in_full(struct kunit *test)
{
	struct test_request *r = request_new(test, WORLD_PAGES);

	gnttab_unmap_refs_defer(&r->req, 0, r->count);
	expect_done(r, 0, 0);
	pass_over_all(test);
	for (unsigned int i = 0; i < r->count; i++)
		expect_unmapped(r, i);
	expect_done(r, 1, 0);
}

static void request_needs_nothing_but_its_init(struct kunit *test)
{
	struct test_request *r = request_new(test, 1);
	struct gnttab_unmap_request req = r->req;

	memset(&r->req, 0xff, sizeof(r->req));
	r->req.ops = req.ops;
	r->req.pages = req.pages;
	r->req.waiting_since = req.waiting_since;
	r->req.refs = NULL;
	r->req.owner = req.owner;
	r->req.done = req.done;
	gnttab_unmap_request_init(&r->req);
	hold(r, 0);
	submit_all(r);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, r->req.delay_ms, 2 * UNMAP_MIN_DELAY_MS);
	release(r, 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

/* --- the queue: order and delays by a given clock */

/* A pass does not go over all pages of a large request for a few at its end. */
static void range_that_a_pass_looks_at_is_that_of_the_pages_that_wait(struct kunit *test)
{
	struct test_request *r = request_new(test, 6);

	hold_all(r);
	submit(r, 3, 2);
	KUNIT_EXPECT_EQ(test, r->req.first, 3);
	KUNIT_EXPECT_EQ(test, r->req.end, 5);
	submit(r, 0, 2);
	KUNIT_EXPECT_EQ(test, r->req.first, 0);
	KUNIT_EXPECT_EQ(test, r->req.end, 5);
	release_all(r);
	pass_over_all(test);
	expect_done(r, 1, 0);

	/* Where it was has nothing to do with where it is. */
	hold(r, 5);
	submit(r, 5, 1);
	KUNIT_EXPECT_EQ(test, r->req.first, 5);
	KUNIT_EXPECT_EQ(test, r->req.end, 6);
	release(r, 5);
	pass_over_all(test);
	expect_done(r, 2, 0);
}

static void range_of_a_request_that_enters_again_is_new(struct kunit *test)
{
	struct test_request *r = request_new(test, 6);

	gnttab_unmap_refs_defer(&r->req, 4, 2);
	pass_over_all(test);
	gnttab_unmap_refs_defer(&r->req, 1, 1);
	KUNIT_EXPECT_EQ(test, r->req.first, 1);
	KUNIT_EXPECT_EQ(test, r->req.end, 2);
	KUNIT_EXPECT_EQ(test, r->req.deferred, 1);
	pass_over_all(test);
}

static unsigned int age_of(struct test_request *r, unsigned int i, unsigned long now)
{
	return elapsed_ms(r->req.waiting_since[i], now);
}

static void age_counts_from_when_the_page_began_to_wait(struct kunit *test)
{
	struct test_request *r = request_new(test, 2);
	unsigned long now = jiffies;

	hold_all(r);
	defer_at(r, 0, 1, now - 60 * HZ);
	defer_at(r, 1, 1, now - 20 * HZ);
	KUNIT_EXPECT_EQ(test, age_of(r, 0, now), 60 * MSEC_PER_SEC);
	KUNIT_EXPECT_EQ(test, age_of(r, 1, now), 20 * MSEC_PER_SEC);
	/* It has begun after somebody has looked at the clock. */
	KUNIT_EXPECT_EQ(test, age_of(r, 1, now - 30 * HZ), 0);

	/* What has waited before does not count. */
	release(r, 0);
	pass_over_all(test);
	expect_unmapped(r, 0);
	page_map(r, 0);
	hold(r, 0);
	defer_at(r, 0, 1, now);
	KUNIT_EXPECT_EQ(test, age_of(r, 0, now), 0);
	release_all(r);
	pass_over_all(test);
}

static void delay_doubles_up_to_256_ms(struct kunit *test)
{
	static const unsigned int delays[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256 };
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);
	unsigned long now = jiffies;

	hold(r, 0);
	defer_at(r, 0, 1, now);
	for (unsigned int i = 0; i < ARRAY_SIZE(delays); i++) {
		KUNIT_EXPECT_EQ_MSG(test, r->req.due - now, msecs_to_jiffies(delays[i]),
				    "delay %u", i);
		KUNIT_EXPECT_EQ_MSG(test, w->due, r->req.due, "delay %u", i);
		now = r->req.due;
		run_pass(w, now);
	}
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, ARRAY_SIZE(delays));
	expect_waiting(r, 0);

	release(r, 0);
	run_pass(w, r->req.due);
	expect_done(r, 1, 0);
}

/* @passes over a request whose page is busy. Return: the time of the last one. */
static unsigned long age(struct test_request *r, unsigned int passes)
{
	struct world *w = r->test->priv;
	unsigned long now = r->req.due;

	while (passes--) {
		now = r->req.due;
		run_pass(w, now);
	}
	return now;
}

static void new_range_of_a_waiting_request_starts_over(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);
	unsigned long now = jiffies;
	unsigned int scheduled;

	hold_all(r);
	defer_at(r, 0, 1, now);
	now = age(r, 8);
	KUNIT_EXPECT_EQ(test, r->req.due, now + delay_of(8));

	scheduled = w->scheduled;
	defer_at(r, 1, 1, now + 1);
	KUNIT_EXPECT_EQ(test, r->req.due, now + 1 + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->scheduled, scheduled + 1);
	KUNIT_EXPECT_EQ(test, w->due, r->req.due);

	release_all(r);
	run_pass(w, now + 1 + delay_of(0));
	expect_unmapped(r, 0);
	expect_unmapped(r, 1);
	expect_done(r, 1, 0);
}

static void due_is_never_put_off(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);
	unsigned long now = jiffies;

	hold_all(r);
	defer_at(r, 0, 1, now);
	defer_at(r, 1, 1, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, r->req.due, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->scheduled, 1);
	release_all(r);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

/* Of several requests that are left, the first one due has the timer. */
static void timer_is_for_the_first_that_is_left(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *due = request_new(test, 1);
	struct test_request *next = request_new(test, 1), *last = request_new(test, 1);
	unsigned long now = jiffies;

	defer_at(due, 0, 1, now);
	defer_at(next, 0, 1, now + 5);
	defer_at(last, 0, 1, now + 50);
	run_pass(w, now + delay_of(0));
	expect_done(due, 1, 0);
	KUNIT_EXPECT_EQ(test, w->due, now + 5 + delay_of(0));
	pass_over_all(test);
}

static void requests_become_due_in_order(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *old = request_new(test, 1), *first = request_new(test, 1);
	struct test_request *second = request_new(test, 1);
	unsigned long now = jiffies;

	/* Those with a short delay overtake the one with a long delay. */
	hold(old, 0);
	defer_at(old, 0, 1, now);
	now = age(old, 8);
	release(old, 0);
	defer_at(first, 0, 1, now + 1);
	defer_at(second, 0, 1, now + 3);
	run_pass(w, now + 3 + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->operations, 2);
	expect_waiting(old, 0);
	KUNIT_EXPECT_EQ(test, w->due, now + delay_of(8));
	run_pass(w, now + delay_of(8));
	KUNIT_EXPECT_EQ(test, w->operations, 3);
	KUNIT_EXPECT_EQ(test, w->order[0], first->first);
	KUNIT_EXPECT_EQ(test, w->order[1], second->first);
	KUNIT_EXPECT_EQ(test, w->order[2], old->first);
}

static void requests_with_the_same_delay_are_unmapped_in_order(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r[4];
	unsigned long now = jiffies;

	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++)
		r[i] = request_new(test, 1);
	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++)
		defer_at(r[ARRAY_SIZE(r) - 1 - i], 0, 1, now + i);
	run_pass(w, now + HZ);
	KUNIT_ASSERT_EQ(test, w->operations, ARRAY_SIZE(r));
	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++)
		KUNIT_EXPECT_EQ(test, w->order[i], r[ARRAY_SIZE(r) - 1 - i]->first);
}

static void pass_takes_only_what_is_due(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *due = request_new(test, 1), *later = request_new(test, 1);
	unsigned long now = jiffies;

	defer_at(due, 0, 1, now);
	defer_at(later, 0, 1, now + 5);

	/* Neither. */
	run_pass(w, now + delay_of(0) - 1);
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, 0);

	run_pass(w, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, 1);
	expect_done(due, 1, 0);
	expect_waiting(later, 0);
	expect_done(later, 0, 0);
	KUNIT_EXPECT_TRUE(test, w->armed);
	KUNIT_EXPECT_EQ(test, w->due, now + 5 + delay_of(0));

	run_pass(w, now + 5 + delay_of(0));
	expect_done(later, 1, 0);
}

static void clock_may_wrap(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);
	unsigned long now = 0UL - delay_of(0);

	/* What is stuck is none of this test's business. */
	w->q->next_report = HZ;
	hold_all(r);
	defer_at(r, 0, 1, now);
	KUNIT_EXPECT_EQ(test, r->req.due, 0);
	run_pass(w, now);
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, 0);
	KUNIT_EXPECT_EQ(test, w->due, 0);
	run_pass(w, 0);
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, 1);
	/* A page that begins to wait at 0 does wait. */
	defer_at(r, 1, 1, 0);
	expect_waiting(r, 1);
	release_all(r);
	run_pass(w, delay_of(1));
	expect_done(r, 1, 0);
}

static void order_holds_when_the_clock_wraps(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *before = request_new(test, 1), *after = request_new(test, 1);
	unsigned long now = 0UL - delay_of(0) - 1;

	w->q->next_report = HZ;
	/* Due right before the wrap, and after it. */
	defer_at(after, 0, 1, now + 3);
	defer_at(before, 0, 1, now);
	KUNIT_EXPECT_EQ(test, w->due, now + delay_of(0));
	run_pass(w, now + delay_of(0));
	expect_done(before, 1, 0);
	expect_waiting(after, 0);
	KUNIT_EXPECT_EQ(test, w->due, now + 3 + delay_of(0));
	run_pass(w, after->req.due);
	expect_done(after, 1, 0);
}

/* --- what is shared */

static void pages_of_many_requests_share_hypercalls(struct kunit *test)
{
	struct world *w = test->priv;
	const unsigned int count = 300;
	struct test_request **r = kunit_kcalloc(test, count, sizeof(*r), GFP_KERNEL);
	unsigned long now = jiffies;

	KUNIT_ASSERT_NOT_NULL(test, r);
	for (unsigned int i = 0; i < count; i++) {
		r[i] = request_new(test, 1);
		defer_at(r[i], 0, 1, now);
	}
	run_pass(w, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->hypercalls, 3);
	KUNIT_EXPECT_EQ(test, w->sizes[0], 128);
	KUNIT_EXPECT_EQ(test, w->sizes[1], 128);
	KUNIT_EXPECT_EQ(test, w->sizes[2], 44);
	KUNIT_EXPECT_EQ(test, w->q->stats.hypercalls, 3);
	for (unsigned int i = 0; i < count; i++)
		expect_done(r[i], 1, 0);
}

static void pass_keeps_no_page_frozen_while_others_want_the_cpu(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *busy = request_new(test, 1);
	struct test_request *small = request_new(test, 3);
	struct test_request *large = request_new(test, 130);
	unsigned long now = jiffies;

	w->others_want_the_cpu = true;
	hold(busy, 0);
	defer_at(small, 0, 3, now);
	defer_at(busy, 0, 1, now);
	defer_at(large, 0, 130, now);
	run_pass(w, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->hypercalls, 3);
	KUNIT_EXPECT_EQ(test, w->sizes[0], 3);
	KUNIT_EXPECT_EQ(test, w->sizes[1], 128);
	KUNIT_EXPECT_EQ(test, w->sizes[2], 2);
	expect_done(small, 1, 0);
	expect_waiting(busy, 0);
	expect_done(large, 1, 0);

	release(busy, 0);
	pass_over_all(test);
	expect_done(busy, 1, 0);
}

/* All pages are in use but the first one, and the last one once the pass has asked. */
static void release_the_last_page(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = w->during_request;

	if (w->asked == 1) {
		release(r, r->count - 1);
		return;
	}
	/* It had to give it up when it was told that others want the CPU. */
	expect_unmapped(r, 0);
	KUNIT_EXPECT_EQ(test, page_count(page_of(r, 0)->page), 1);
}

static void pass_yields_within_a_large_request(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3 * UNMAP_STEP);
	unsigned long now = jiffies;

	hold_all(r);
	release(r, 0);
	defer_at(r, 0, r->count, now);
	w->others_want_the_cpu = true;
	w->during_request = r;
	w->on_ask = release_the_last_page;
	run_pass(w, now + delay_of(0));
	w->on_ask = NULL;
	/* It has gone on with the rest: the last page was in use before. */
	KUNIT_EXPECT_GE(test, w->asked, 3);
	KUNIT_EXPECT_EQ(test, w->operations, 2);
	expect_unmapped(r, r->count - 1);
	for (unsigned int i = 1; i < r->count - 1; i++)
		expect_waiting(r, i);
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, r->count);

	for (unsigned int i = 1; i < r->count - 1; i++)
		release(r, i);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

static void pass_takes_a_few_requests_at_a_time(struct kunit *test)
{
	struct world *w = test->priv;
	const unsigned int count = UNMAP_STEP + 2;
	struct test_request **r = kunit_kcalloc(test, count, sizeof(*r), GFP_KERNEL);
	unsigned long now = jiffies;

	KUNIT_ASSERT_NOT_NULL(test, r);
	for (unsigned int i = 0; i < count; i++) {
		r[i] = request_new(test, 1);
		defer_at(r[i], 0, 1, now);
	}
	spin_lock_irq(&w->q->lock);
	KUNIT_EXPECT_TRUE(test, pass_take(w->q, now + delay_of(0)));
	spin_unlock_irq(&w->q->lock);
	KUNIT_EXPECT_TRUE(test, r[UNMAP_STEP - 1]->req.in_pass);
	KUNIT_EXPECT_FALSE(test, r[UNMAP_STEP]->req.in_pass);

	/* But all of them, in the end. */
	run_pass(w, now + delay_of(0));
	for (unsigned int i = 0; i < count; i++)
		expect_done(r[i], 1, 0);
	KUNIT_EXPECT_EQ(test, w->q->stats.passes, 1);
}

static void pages_of_one_request_may_take_many_hypercalls(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *small = request_new(test, 100), *large = request_new(test, 200);
	unsigned long now = jiffies;

	/* The first hypercall has pages of both, and the second one some busy ones. */
	hold(large, 30);
	defer_at(small, 0, 100, now);
	defer_at(large, 0, 200, now);
	run_pass(w, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->hypercalls, 3);
	KUNIT_EXPECT_EQ(test, w->sizes[0], 128);
	KUNIT_EXPECT_EQ(test, w->sizes[2], 299 - 2 * 128);
	expect_done(small, 1, 0);
	expect_done(large, 0, 0);
	expect_waiting(large, 30);
	KUNIT_EXPECT_EQ(test, large->req.waiting, 1);

	release(large, 30);
	pass_over_all(test);
	expect_done(large, 1, 0);
}

static void one_timer_however_many_requests(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r[50];
	unsigned long now = jiffies;

	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++) {
		r[i] = request_new(test, 1);
		hold(r[i], 0);
		defer_at(r[i], 0, 1, now + i);
	}
	KUNIT_EXPECT_EQ(test, w->scheduled, 1);
	KUNIT_EXPECT_EQ(test, w->due, now + delay_of(0));

	/* All are due now, and all are to be tried again. */
	w->scheduled = 0;
	now += HZ;
	run_pass(w, now);
	KUNIT_EXPECT_EQ(test, w->q->stats.attempts, ARRAY_SIZE(r));
	KUNIT_EXPECT_EQ(test, w->scheduled, 1);
	KUNIT_EXPECT_TRUE(test, w->armed);
	KUNIT_EXPECT_EQ(test, w->due, now + delay_of(1));

	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++)
		release(r[i], 0);
	w->scheduled = 0;
	run_pass(w, now + HZ);
	KUNIT_EXPECT_EQ(test, w->scheduled, 0);
	KUNIT_EXPECT_FALSE(test, w->armed);
	for (unsigned int i = 0; i < ARRAY_SIZE(r); i++)
		expect_done(r[i], 1, 0);
}

/* --- submissions while a pass is at work */

static void submit_busy_page_of_the_request(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = w->during_request;

	hold(r, 2);
	KUNIT_EXPECT_FALSE(test, submit(r, 1, 2));
	/* One was idle. */
	expect_unmapped(r, 1);
	expect_waiting(r, 2);
}

static void range_submitted_during_a_pass_waits(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3);
	unsigned long now = jiffies;

	hold(r, 0);
	defer_at(r, 0, 1, now);
	now = age(r, 5);
	release(r, 0);
	w->during_request = r;
	w->during = submit_busy_page_of_the_request;
	now = r->req.due;
	run_pass(w, now);
	expect_unmapped(r, 0);
	expect_waiting(r, 2);
	expect_done(r, 0, 0);
	/* It is new, and does not have to wait for as long as the old one. */
	KUNIT_EXPECT_EQ(test, r->req.due, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, r->req.delay_ms, UNMAP_MIN_DELAY_MS);
	KUNIT_EXPECT_EQ(test, r->req.waiting, 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&w->owner->requests), 1);

	release(r, 2);
	run_pass(w, r->req.due);
	expect_unmapped(r, 2);
	expect_done(r, 1, 0);
}

static void submit_page_ahead_of_the_pass(struct kunit *test)
{
	struct world *w = test->priv;

	defer_at(w->during_request, UNMAP_BATCH, 1, jiffies);
}

/* The pass comes by it: it has been marked and counted, so it is settled once. */
static void page_submitted_ahead_of_a_pass_is_unmapped_by_it(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, UNMAP_BATCH + 2);
	unsigned long now = jiffies;

	defer_at(r, 0, UNMAP_BATCH, now);
	defer_at(r, UNMAP_BATCH + 1, 1, now);
	w->during_request = r;
	w->during = submit_page_ahead_of_the_pass;
	run_pass(w, now + delay_of(0));
	KUNIT_EXPECT_EQ(test, w->operations, UNMAP_BATCH + 2);
	KUNIT_EXPECT_EQ(test, w->q->stats.deferred, UNMAP_BATCH + 2);
	expect_done(r, 1, 0);
}

static void submit_more_of_the_request(struct kunit *test)
{
	struct world *w = test->priv;

	defer_at(w->during_request, 1, 1, jiffies);
}

/* The others are in the tree meanwhile, and it is not. */
static void request_in_a_pass_is_not_in_the_tree(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *others[8], *r;
	unsigned long now = jiffies;

	r = request_new(test, 2);
	defer_at(r, 0, 1, now);
	for (unsigned int i = 0; i < ARRAY_SIZE(others); i++) {
		others[i] = request_new(test, 1);
		hold(others[i], 0);
		defer_at(others[i], 0, 1, now + 5 + i);
	}
	w->during_request = r;
	w->during = submit_more_of_the_request;
	run_pass(w, now + delay_of(0));
	expect_waiting(r, 1);
	KUNIT_EXPECT_EQ(test, r->req.delay_ms, UNMAP_MIN_DELAY_MS);
	for (unsigned int i = 0; i < ARRAY_SIZE(others); i++)
		release(others[i], 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(others); i++)
		expect_done(others[i], 1, 0);
}

static void submit_another_request(struct kunit *test)
{
	struct world *w = test->priv;

	hold(w->during_request, 0);
	KUNIT_EXPECT_TRUE(test, submit_all(w->during_request));
}

static void request_submitted_during_a_pass_waits_for_the_next(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1), *other = request_new(test, 1);

	hold(r, 0);
	submit_all(r);
	release(r, 0);
	w->during_request = other;
	w->during = submit_another_request;
	pass_over_all(test);
	expect_done(r, 1, 0);
	expect_waiting(other, 0);
	KUNIT_EXPECT_EQ(test, other->req.delay_ms, UNMAP_MIN_DELAY_MS);
	KUNIT_EXPECT_TRUE(test, w->armed);
	KUNIT_EXPECT_EQ(test, w->due, other->req.due);

	release(other, 0);
	pass_over_all(test);
	expect_done(other, 1, 0);
}

/* --- owners */

static void owner_is_in_the_queue_until_done_has_returned(struct test_request *r)
{
	struct world *w = r->test->priv;

	KUNIT_EXPECT_EQ(r->test, atomic_read(&w->owner->requests), 1);
	KUNIT_EXPECT_EQ(r->test, refcount_read(&w->owner->users), 2);
	KUNIT_EXPECT_EQ(r->test, gnttab_unmap_drain(w->owner, 1), -ETIMEDOUT);
	/* No page is in use: there is nobody to name. */
	KUNIT_EXPECT_EQ(r->test, w->reported, 0);
}

static void owner_is_pinned_until_done_has_returned(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);

	r->on_done = owner_is_in_the_queue_until_done_has_returned;
	hold_all(r);
	submit(r, 0, 1);
	submit(r, 1, 1);
	/* However many ranges there are. */
	KUNIT_EXPECT_EQ(test, atomic_read(&w->owner->requests), 1);
	KUNIT_EXPECT_EQ(test, refcount_read(&w->owner->users), 2);
	release_all(r);
	pass_over_all(test);
	expect_done(r, 1, 0);
}

static void owner_is_not_pinned_by_what_is_unmapped_at_once(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	submit_all(r);
	KUNIT_EXPECT_EQ(test, atomic_read(&w->owner->requests), 0);
	KUNIT_EXPECT_EQ(test, refcount_read(&w->owner->users), 1);
}

#ifdef CONFIG_MODULE_UNLOAD
static void module_is_in_use(struct test_request *r)
{
	struct world *w = r->test->priv;

	KUNIT_EXPECT_EQ(r->test, module_refcount(w->owner->module), 1);
}

static void module_is_pinned_until_done_has_returned(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);
	struct module *module = kunit_kzalloc(test, sizeof(*module), GFP_KERNEL);

	/* These tests are built in. It takes a count only to be a module here. */
	KUNIT_ASSERT_NOT_NULL(test, module);
	atomic_set(&module->refcnt, 1);
	w->owner->module = module;
	r->on_done = module_is_in_use;

	hold(r, 0);
	submit_all(r);
	KUNIT_EXPECT_EQ(test, module_refcount(module), 1);
	release(r, 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, module_refcount(module), 0);
}
#endif

static void drain_returns_at_once_without_pending_work(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	/* It would have to wait for ever, if it had to wait. */
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, UINT_MAX), 0);
	submit_all(r);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, UINT_MAX), 0);
}

static void drain_returns_at_once_when_others_have_pending_work(struct kunit *test)
{
	struct test_request *r = request_new(test, 1);
	struct gnttab_unmap_owner *other = gnttab_unmap_owner_create(THIS_MODULE, "other");

	KUNIT_ASSERT_NOT_NULL(test, other);
	hold(r, 0);
	submit_all(r);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(other, UINT_MAX), 0);
	gnttab_unmap_owner_put(other);
	release(r, 0);
	pass_over_all(test);
}

static void drain_times_out_and_names_the_page_in_use(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	hold(r, 0);
	submit_all(r);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, 0), -ETIMEDOUT);
	KUNIT_EXPECT_EQ(test, w->reported, 0);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, 1), -ETIMEDOUT);
	expect_waiting(r, 0);
	KUNIT_EXPECT_EQ(test, w->reported, 1);
	KUNIT_EXPECT_EQ(test, w->report.pages, 1);
	KUNIT_EXPECT_EQ(test, w->report.longest.references, 2);
	KUNIT_EXPECT_EQ(test, w->report.longest.foreign.domid, page_domid(0));
	KUNIT_EXPECT_EQ(test, w->report.longest.foreign.gref, page_gref(0));
	KUNIT_EXPECT_STREQ(test, w->report.longest.owner, "test/1");
	release(r, 0);
	pass_over_all(test);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, 1), 0);
}

static void requests_in_the_queue_are_counted(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *first = request_new(test, 1);
	struct test_request *second = request_new(test, 2);

	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 0);
	hold(first, 0);
	hold(second, 0);
	hold(second, 1);
	submit_all(first);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 1);
	submit_all(second);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 2);
	release(second, 0);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 2);
	release(second, 1);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 1);
	release(first, 0);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, gnttab_unmap_owner_requests(w->owner), 0);
}

/* Gives the page back when somebody waits for it, and runs the pass. */
static int release_for_drain(void *data)
{
	struct test_request *r = data;
	struct world *w = r->test->priv;

	/* To have the stubs of the test, whose own task sleeps in a moment. */
	current->kunit_test = r->test;
	while (!wq_has_sleeper(&w->owner->drained) && !kthread_should_stop())
		schedule_timeout_idle(1);
	release(r, 0);
	pass_over_all(r->test);
	/* Who is woken leaves the wait queue at once, who is not at its timeout. */
	KUNIT_EXPECT_FALSE(r->test, waitqueue_active(&w->owner->drained));
	current->kunit_test = NULL;

	while (!kthread_should_stop())
		schedule_timeout_idle(1);
	return 0;
}

static void drain_waits_for_pending_work(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);
	struct task_struct *task;

	hold(r, 0);
	submit_all(r);
	task = kthread_run(release_for_drain, r, "xen-grant-unmap-test");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	KUNIT_EXPECT_EQ(test, gnttab_unmap_drain(w->owner, 10 * MSEC_PER_SEC), 0);
	expect_unmapped(r, 0);
	expect_done(r, 1, 0);
	kthread_stop(task);
}

/* --- what can be seen of it */

static void stats_add_up(struct kunit *test)
{
	struct world *w = test->priv;
	struct unmap_stats *stats = &w->q->stats;
	struct test_request *r = request_new(test, 4);

	hold_all(r);
	submit_all(r);
	KUNIT_EXPECT_EQ(test, stats->deferred, 4);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, stats->passes, 1);
	KUNIT_EXPECT_EQ(test, stats->attempts, 4);
	KUNIT_EXPECT_EQ(test, stats->hypercalls, 0);
	KUNIT_EXPECT_EQ(test, stats->unmapped, 0);

	release(r, 0);
	release(r, 1);
	page_of(r, 1)->refuse = true;
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, stats->passes, 2);
	KUNIT_EXPECT_EQ(test, stats->attempts, 8);
	KUNIT_EXPECT_EQ(test, stats->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, stats->unmapped, 1);
	KUNIT_EXPECT_EQ(test, stats->failed, 1);

	release(r, 2);
	release(r, 3);
	pass_over_all(test);
	KUNIT_EXPECT_EQ(test, stats->passes, 3);
	KUNIT_EXPECT_EQ(test, stats->attempts, 10);
	KUNIT_EXPECT_EQ(test, stats->hypercalls, 2);
	KUNIT_EXPECT_EQ(test, stats->deferred, 4);
	KUNIT_EXPECT_EQ(test, stats->unmapped, 3);
	KUNIT_EXPECT_EQ(test, stats->failed, 1);
}

static void survey_names_the_page_that_has_waited_for_longest(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *young = request_new(test, 1), *old = request_new(test, 2);
	struct gnttab_unmap_owner *other = gnttab_unmap_owner_create(THIS_MODULE, "other");
	unsigned long now = jiffies;
	struct unmap_survey survey;

	KUNIT_ASSERT_NOT_NULL(test, other);
	hold_all(young);
	hold_all(old);
	hold(old, 1);
	defer_at(old, 1, 1, now - 90 * HZ);
	defer_at(old, 0, 1, now - 30 * HZ);
	defer_at(young, 0, 1, now - 60 * HZ);

	queue_survey(w->q, NULL, now, 60 * MSEC_PER_SEC, &survey);
	KUNIT_EXPECT_EQ(test, survey.pages, 2);
	KUNIT_EXPECT_EQ(test, survey.longest.ms, 90 * MSEC_PER_SEC);
	KUNIT_EXPECT_EQ(test, survey.longest.references, 3);
	KUNIT_EXPECT_EQ(test, survey.longest.pfn, page_to_pfn(page_of(old, 1)->page));
	KUNIT_EXPECT_EQ(test, survey.longest.foreign.domid, page_domid(old->first + 1));
	KUNIT_EXPECT_EQ(test, survey.longest.foreign.gref, page_gref(old->first + 1));
	KUNIT_EXPECT_STREQ(test, survey.longest.owner, "test/1");

	queue_survey(w->q, other, now, 0, &survey);
	KUNIT_EXPECT_EQ(test, survey.pages, 0);
	gnttab_unmap_owner_put(other);

	release_all(young);
	release_all(old);
	release(old, 1);
	run_pass(w, now + HZ);
	expect_done(young, 1, 0);
	expect_done(old, 1, 0);
}

static void survey_leaves_out_pages_that_are_idle(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 2);
	struct unmap_survey survey;

	hold_all(r);
	submit_all(r);
	release(r, 0);
	queue_survey(w->q, NULL, jiffies, 0, &survey);
	KUNIT_EXPECT_EQ(test, survey.pages, 1);
	KUNIT_EXPECT_EQ(test, survey.longest.pfn, page_to_pfn(page_of(r, 1)->page));
	release(r, 1);
	pass_over_all(test);
}

/* The next page that the walk finds is @i of the request. */
static void expect_next(struct unmap_walk *walk, struct test_request *r, unsigned int i)
{
	struct world *w = r->test->priv;

	KUNIT_EXPECT_TRUE(r->test, walk_next(walk, w->q));
	KUNIT_EXPECT_EQ(r->test, walk->page.pfn, page_to_pfn(page_of(r, i)->page));
	KUNIT_EXPECT_EQ(r->test, walk->page.foreign.domid, page_domid(r->first + i));
	KUNIT_EXPECT_EQ(r->test, walk->page.foreign.gref, page_gref(r->first + i));
	KUNIT_EXPECT_EQ(r->test, walk->page.references, 2);
	KUNIT_EXPECT_STREQ(r->test, walk->page.owner, "test/1");
}

static void walk_finds_the_pages_that_wait_in_the_order_of_their_requests(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *first = request_new(test, 4), *second = request_new(test, 2);
	unsigned long now = jiffies;
	struct unmap_walk walk;

	walk_begin(&walk, w->q, NULL, 0, now);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));

	hold(first, 1);
	hold(first, 3);
	hold_all(second);
	submit_all(first);
	submit(second, 0, 1);
	/* The second one is due first, then, but that is nothing to a walk. */
	run_pass(w, second->req.due);
	submit(second, 1, 1);
	walk_begin(&walk, w->q, NULL, 0, now);
	expect_next(&walk, first, 1);
	expect_next(&walk, first, 3);
	expect_next(&walk, second, 0);
	expect_next(&walk, second, 1);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));

	release(first, 1);
	release(first, 3);
	release_all(second);
	pass_over_all(test);
	walk_begin(&walk, w->q, NULL, 0, now);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));
}

static void walk_finds_each_page_once_while_requests_come_and_go(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *a = request_new(test, 4), *b = request_new(test, 2);
	struct test_request *c = request_new(test, 2), *late = request_new(test, 1);
	struct unmap_walk walk;

	hold_all(a);
	hold_all(b);
	hold_all(c);
	hold_all(late);
	submit(a, 0, 3);
	submit_all(b);
	submit_all(c);
	walk_begin(&walk, w->q, NULL, 0, jiffies);
	expect_next(&walk, a, 0);
	expect_next(&walk, a, 1);

	/* What is behind goes, what is ahead goes, and all get into another list. */
	release(a, 0);
	release(a, 2);
	release_all(b);
	pass_over_all(test);
	expect_done(b, 1, 0);
	/* One request more, and one page more of one that was there. */
	submit_all(late);
	submit(a, 3, 1);
	expect_next(&walk, a, 3);
	expect_next(&walk, c, 0);
	expect_next(&walk, c, 1);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));

	release(a, 1);
	release(a, 3);
	release_all(c);
	release_all(late);
	pass_over_all(test);
}

static void walk_goes_on_where_its_request_was(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *gone = request_new(test, 2), *next = request_new(test, 1);
	struct unmap_walk walk;

	hold_all(gone);
	hold_all(next);
	submit_all(gone);
	submit_all(next);
	walk_begin(&walk, w->q, NULL, 0, jiffies);
	expect_next(&walk, gone, 0);

	/* It may be freed now, or in the queue again as a new one. */
	release_all(gone);
	pass_over_all(test);
	expect_done(gone, 1, 0);
	page_map(gone, 1);
	hold(gone, 1);
	submit(gone, 1, 1);
	expect_next(&walk, next, 0);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));

	walk_begin(&walk, w->q, NULL, 0, jiffies);
	expect_next(&walk, next, 0);
	expect_next(&walk, gone, 1);
	release(gone, 1);
	release(next, 0);
	pass_over_all(test);
}

/* As many steps as it takes to get an answer. */
static int walk_steps(struct kunit *test, struct unmap_walk *walk, unsigned int *steps)
{
	struct world *w = test->priv;
	unsigned int before;
	u64 number;
	int ret;

	for (*steps = 1;; ++*steps) {
		number = walk->number;
		before = walk->index;
		spin_lock_irq(&w->q->lock);
		ret = walk_step(walk, w->q);
		spin_unlock_irq(&w->q->lock);
		if (number == walk->number)
			KUNIT_EXPECT_LE(test, walk->index, before + UNMAP_STEP);
		else
			KUNIT_EXPECT_LE(test, walk->number, number + UNMAP_STEP);
		if (ret != -EAGAIN)
			return ret;
	}
}

static void walk_looks_at_a_few_pages_at_a_time(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 3 * UNMAP_STEP);
	struct unmap_walk walk;
	unsigned int steps;

	hold(r, 0);
	hold(r, r->count - 1);
	submit_all(r);
	walk_begin(&walk, w->q, NULL, 0, jiffies);
	KUNIT_EXPECT_EQ(test, walk_steps(test, &walk, &steps), 1);
	KUNIT_EXPECT_EQ(test, steps, 1);
	KUNIT_EXPECT_EQ(test, walk_steps(test, &walk, &steps), 1);
	KUNIT_EXPECT_EQ(test, steps, 3);
	KUNIT_EXPECT_EQ(test, walk.page.pfn, page_to_pfn(page_of(r, r->count - 1)->page));
	KUNIT_EXPECT_EQ(test, walk_steps(test, &walk, &steps), 0);
	release(r, 0);
	release(r, r->count - 1);
	pass_over_all(test);
}

static void walk_looks_at_a_few_requests_at_a_time(struct kunit *test)
{
	struct world *w = test->priv;
	unsigned long now = jiffies;
	struct unmap_walk walk;
	unsigned int steps;

	for (unsigned int i = 0; i < 2 * UNMAP_STEP + 1; i++)
		defer_at(request_new(test, 1), 0, 1, now);
	/* None is that old. */
	walk_begin(&walk, w->q, NULL, MSEC_PER_SEC, now);
	KUNIT_EXPECT_EQ(test, walk_steps(test, &walk, &steps), 0);
	KUNIT_EXPECT_EQ(test, steps, 3);
	pass_over_all(test);
}

static void walk_during_the_pass(struct kunit *test)
{
	struct world *w = test->priv;
	struct unmap_walk walk;

	walk_begin(&walk, w->q, NULL, 0, jiffies);
	KUNIT_EXPECT_TRUE(test, walk_next(&walk, w->q));
	KUNIT_EXPECT_EQ(test, walk.page.references, 1);
}

static void page_that_is_frozen_is_shown_with_its_own_references(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);

	gnttab_unmap_refs_defer(&r->req, 0, 1);
	w->during = walk_during_the_pass;
	pass_over_all(test);
	KUNIT_EXPECT_NULL(test, w->during);
}

static void page_without_a_tag_is_not_shown(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);
	struct unmap_walk walk;

	page_untag(r, 0);
	gnttab_unmap_refs_defer(&r->req, 0, 1);
	walk_begin(&walk, w->q, NULL, 0, jiffies);
	KUNIT_EXPECT_FALSE(test, walk_next(&walk, w->q));
	pass_over_all(test);
}

static void stuck_page_is_reported_once_a_minute(struct kunit *test)
{
	struct world *w = test->priv;
	struct test_request *r = request_new(test, 1);
	unsigned long now = jiffies, after = report_after * HZ;

	if (!report_after || report_after > 3600)
		kunit_skip(test, "the parameter report_after is %u", report_after);
	w->q->next_report = now;
	hold(r, 0);
	defer_at(r, 0, 1, now);

	/* Not yet: look again in a second. */
	run_pass(w, now + after - HZ);
	KUNIT_EXPECT_EQ(test, w->reported, 0);
	KUNIT_EXPECT_EQ(test, w->q->next_report, now + after);
	run_pass(w, now + after);
	KUNIT_EXPECT_EQ(test, w->reported, 1);
	KUNIT_EXPECT_EQ(test, w->report.pages, 1);
	KUNIT_EXPECT_EQ(test, w->report.longest.ms, report_after * MSEC_PER_SEC);
	run_pass(w, now + after + REPORT_INTERVAL - 1);
	KUNIT_EXPECT_EQ(test, w->reported, 1);
	run_pass(w, now + after + REPORT_INTERVAL);
	KUNIT_EXPECT_EQ(test, w->reported, 2);

	release(r, 0);
	run_pass(w, now + after + 2 * REPORT_INTERVAL);
	expect_done(r, 1, 0);
	KUNIT_EXPECT_EQ(test, w->reported, 2);
}

static struct kunit_case grant_unmap_cases[] = {
	KUNIT_CASE(idle_pages_are_unmapped_at_once),
	KUNIT_CASE(only_the_pages_submitted_are_unmapped),
	KUNIT_CASE(busy_page_waits_and_the_others_do_not),
	KUNIT_CASE(busy_page_is_unmapped_once_it_is_idle),
	KUNIT_CASE(busy_page_that_is_held_twice_waits_for_both),
	KUNIT_CASE(pages_of_a_request_are_settled_one_by_one),
	KUNIT_CASE(page_counts_as_submitted_until_it_is_mapped_again),
	KUNIT_CASE(large_request_is_unmapped_in_full),
	KUNIT_CASE(page_is_frozen_during_the_hypercall),
	KUNIT_CASE(both_mappings_of_idle_pages_go_in_one_hypercall),
	KUNIT_CASE(both_mappings_stay_where_one_page_is_busy),
	KUNIT_CASE(both_mappings_stay_where_one_was_never_made),
	KUNIT_CASE(both_mappings_stay_where_a_page_waits),
	KUNIT_CASE(page_that_stays_mapped_for_a_process_keeps_its_tag),
	KUNIT_CASE(page_that_stays_mapped_for_the_kernel_keeps_its_tag),
	KUNIT_CASE(page_is_lost_once_if_neither_mapping_goes),
	KUNIT_CASE(hypercall_for_both_that_fails_halfway_loses_the_rest),
	KUNIT_CASE(hypercall_for_both_that_does_not_reach_the_kernels_loses_all),
	KUNIT_CASE(page_with_noted_references_is_idle_when_it_has_those),
	KUNIT_CASE(page_with_less_than_the_noted_references_waits),
	KUNIT_CASE(tail_page_is_idle_without_references),
	KUNIT_CASE(whole_hypercall_failure_keeps_every_tag),
	KUNIT_CASE(whole_hypercall_failure_of_a_pass_keeps_every_tag),
	KUNIT_CASE(operations_before_a_hypercall_failed_are_counted_as_unmapped),
	KUNIT_CASE(refused_page_keeps_its_tag_and_is_counted_as_leaked),
	KUNIT_CASE(refused_page_of_the_queue_is_counted_for_its_request_only),
	KUNIT_CASE(p2m_mismatch_fails_that_page_alone),
	KUNIT_CASE(p2m_mismatch_in_a_pass_is_counted_for_its_request_only),
	KUNIT_CASE(page_without_a_tag_has_no_p2m_entry_to_clear),
	KUNIT_CASE(page_without_a_tag_gets_one_when_it_is_refused),
	KUNIT_CASE(failures_add_up_until_done_is_called),
	KUNIT_CASE(unmap_refs_tells_that_a_page_failed),
	KUNIT_CASE(done_runs_once_for_all_ranges_pending),
	KUNIT_CASE(done_may_submit_the_same_request_again),
	KUNIT_CASE(request_that_done_submits_waits_in_the_queue_again),
	KUNIT_CASE(done_may_free_the_request),
	KUNIT_CASE(nothing_to_unmap_completes_at_once),
	KUNIT_CASE(empty_range_of_a_waiting_request_does_not_complete_it),
	KUNIT_CASE(deferred_page_is_not_tried_before_a_pass),
	KUNIT_CASE(deferred_page_with_an_invalid_handle_is_skipped),
	KUNIT_CASE(large_request_is_deferred_in_full),
	KUNIT_CASE(request_needs_nothing_but_its_init),
	KUNIT_CASE(range_that_a_pass_looks_at_is_that_of_the_pages_that_wait),
	KUNIT_CASE(range_of_a_request_that_enters_again_is_new),
	KUNIT_CASE(age_counts_from_when_the_page_began_to_wait),
	KUNIT_CASE(delay_doubles_up_to_256_ms),
	KUNIT_CASE(new_range_of_a_waiting_request_starts_over),
	KUNIT_CASE(due_is_never_put_off),
	KUNIT_CASE(timer_is_for_the_first_that_is_left),
	KUNIT_CASE(requests_become_due_in_order),
	KUNIT_CASE(requests_with_the_same_delay_are_unmapped_in_order),
	KUNIT_CASE(pass_takes_only_what_is_due),
	KUNIT_CASE(clock_may_wrap),
	KUNIT_CASE(order_holds_when_the_clock_wraps),
	KUNIT_CASE(pages_of_many_requests_share_hypercalls),
	KUNIT_CASE(pass_keeps_no_page_frozen_while_others_want_the_cpu),
	KUNIT_CASE(pass_yields_within_a_large_request),
	KUNIT_CASE(pass_takes_a_few_requests_at_a_time),
	KUNIT_CASE(pages_of_one_request_may_take_many_hypercalls),
	KUNIT_CASE(one_timer_however_many_requests),
	KUNIT_CASE(range_submitted_during_a_pass_waits),
	KUNIT_CASE(page_submitted_ahead_of_a_pass_is_unmapped_by_it),
	KUNIT_CASE(request_in_a_pass_is_not_in_the_tree),
	KUNIT_CASE(request_submitted_during_a_pass_waits_for_the_next),
	KUNIT_CASE(owner_is_pinned_until_done_has_returned),
	KUNIT_CASE(owner_is_not_pinned_by_what_is_unmapped_at_once),
#ifdef CONFIG_MODULE_UNLOAD
	KUNIT_CASE(module_is_pinned_until_done_has_returned),
#endif
	KUNIT_CASE(drain_returns_at_once_without_pending_work),
	KUNIT_CASE(drain_returns_at_once_when_others_have_pending_work),
	KUNIT_CASE(drain_times_out_and_names_the_page_in_use),
	KUNIT_CASE(drain_waits_for_pending_work),
	KUNIT_CASE(requests_in_the_queue_are_counted),
	KUNIT_CASE(stats_add_up),
	KUNIT_CASE(survey_names_the_page_that_has_waited_for_longest),
	KUNIT_CASE(survey_leaves_out_pages_that_are_idle),
	KUNIT_CASE(walk_finds_the_pages_that_wait_in_the_order_of_their_requests),
	KUNIT_CASE(walk_finds_each_page_once_while_requests_come_and_go),
	KUNIT_CASE(walk_goes_on_where_its_request_was),
	KUNIT_CASE(walk_looks_at_a_few_pages_at_a_time),
	KUNIT_CASE(walk_looks_at_a_few_requests_at_a_time),
	KUNIT_CASE(page_that_is_frozen_is_shown_with_its_own_references),
	KUNIT_CASE(page_without_a_tag_is_not_shown),
	KUNIT_CASE(stuck_page_is_reported_once_a_minute),
	{}
};

static struct kunit_suite grant_unmap_suite = {
	.name = "xen-grant-unmap",
	.init = world_init,
	.exit = world_exit,
	.test_cases = grant_unmap_cases,
};

kunit_test_suite(grant_unmap_suite);
