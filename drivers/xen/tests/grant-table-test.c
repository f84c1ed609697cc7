// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of the tags of foreign pages. A page has a tag if, and only if, a grant
 * of another domain is mapped onto it. While it has a tag it is not handed out again.
 *
 * Models replace the hypervisor and the p2m. They fail where a test tells them to.
 */

#include <kunit/test.h>

#define TAG_PAGES 4

/**
 * struct tag_world - the pages and the models of a test
 * @pages: pages to map grants onto
 * @map: operations that map them, followed by those of the kernel's half
 * @kmap: the operations of the kernel's half, in @map
 * @map_status: the status that the model gives to each operation of @map
 * @kmap_status: the status that the model gives to each operation of @kmap
 * @retry_status: the status of each operation that is tried again
 * @retries: how many operations were tried again
 * @p2m_fails: for each page, whether there is no memory for its p2m entry
 * @map_ret: what the hypercall that maps returns
 * @p2m_ret: what setting up the p2m returns, for all pages
 * @hypercalls: how many hypercalls there were
 * @p2m_calls: how often the p2m was set up
 * @p2m: for each page, whether it has a p2m entry
 * @freed: the pages that were freed
 * @freed_count: how many pages were freed
 * @free_calls: how many calls freed them
 */
struct tag_world {
	struct page *pages[TAG_PAGES];
	struct gnttab_map_grant_ref map[2 * TAG_PAGES];
	struct gnttab_map_grant_ref *kmap;

	int map_status[TAG_PAGES];
	int kmap_status[TAG_PAGES];
	int retry_status;
	unsigned int retries;
	bool p2m_fails[TAG_PAGES];
	int map_ret;
	int p2m_ret;

	unsigned int hypercalls;
	unsigned int p2m_calls;
	bool p2m[TAG_PAGES];
	struct page *freed[TAG_PAGES];
	unsigned int freed_count;
	unsigned int free_calls;
};

static domid_t tag_domid(unsigned int i)
{
	/* The largest domain IDs of guests, to see that no bit of them is cut off. */
	return DOMID_FIRST_RESERVED - 1 - i;
}

static grant_ref_t tag_gref(unsigned int i)
{
	return 0xffffff00 + i;
}

/* --- the model of the hypervisor, of the p2m, and of the allocator */

static int model_map_hypercall(struct gnttab_map_grant_ref *ops, unsigned int count)
{
	struct tag_world *w = kunit_get_current_test()->priv;

	w->hypercalls++;
	if (w->map_ret)
		return w->map_ret;
	for (unsigned int i = 0; i < count; i++) {
		ops[i].status = ops + i < w->kmap ? w->map_status[i] :
						    w->kmap_status[ops + i - w->kmap];
		ops[i].handle = ops[i].status == GNTST_okay ? i : INVALID_GRANT_HANDLE;
	}
	return 0;
}

static void model_retry(unsigned int cmd, void *gop, int16_t *status, const char *func)
{
	struct tag_world *w = kunit_get_current_test()->priv;

	w->retries++;
	*status = w->retry_status;
}

static int model_map_p2m(struct gnttab_map_grant_ref *map_ops,
			 struct gnttab_map_grant_ref *kmap_ops,
			 struct page **pages, unsigned int count)
{
	struct tag_world *w = kunit_get_current_test()->priv;

	w->p2m_calls++;
	if (w->p2m_ret)
		return w->p2m_ret;
	for (unsigned int i = 0; i < count; i++) {
		if (map_ops[i].status != GNTST_okay ||
		    (kmap_ops && kmap_ops[i].status != GNTST_okay))
			continue;
		if (!w->p2m_fails[i]) {
			w->p2m[i] = true;
			continue;
		}
		map_ops[i].status = GNTST_general_error;
		map_ops[i].handle = INVALID_GRANT_HANDLE;
		if (kmap_ops)
			kmap_ops[i].status = GNTST_general_error;
	}
	return 0;
}

static void model_free(unsigned int nr_pages, struct page **pages)
{
	struct tag_world *w = kunit_get_current_test()->priv;

	w->free_calls++;
	for (unsigned int i = 0; i < nr_pages && w->freed_count < TAG_PAGES; i++)
		w->freed[w->freed_count++] = pages[i];
}

/* --- the world */

static int tag_world_init(struct kunit *test)
{
	struct tag_world *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, w);
	test->priv = w;
	w->kmap = w->map + TAG_PAGES;
	for (unsigned int i = 0; i < TAG_PAGES; i++) {
		w->pages[i] = alloc_page(GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, w->pages[i]);
		set_page_private(w->pages[i], 0);
		KUNIT_ASSERT_EQ(test, gnttab_pages_set_private(1, &w->pages[i]), 0);
		gnttab_set_map_op(&w->map[i], 0, GNTMAP_host_map, tag_gref(i), tag_domid(i));
		gnttab_set_map_op(&w->kmap[i], 0, GNTMAP_host_map, tag_gref(i), tag_domid(i));
	}
	kunit_activate_static_stub(test, map_hypercall, model_map_hypercall);
	kunit_activate_static_stub(test, gnttab_retry_eagain_gop, model_retry);
	kunit_activate_static_stub(test, map_p2m, model_map_p2m);
	kunit_activate_static_stub(test, free_unpopulated, model_free);
	return 0;
}

static void tag_world_exit(struct kunit *test)
{
	struct tag_world *w = test->priv;

	for (unsigned int i = 0; w && i < TAG_PAGES && w->pages[i]; i++) {
		ClearPageForeign(w->pages[i]);
		gnttab_pages_clear_private(1, &w->pages[i]);
		set_page_private(w->pages[i], 0);
		__free_page(w->pages[i]);
	}
}

static void expect_tag(struct kunit *test, unsigned int i)
{
	struct tag_world *w = test->priv;
	struct xen_page_foreign *foreign = xen_page_foreign(w->pages[i]);

	KUNIT_EXPECT_TRUE_MSG(test, w->p2m[i], "page %u", i);
	KUNIT_ASSERT_NOT_NULL_MSG(test, foreign, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(test, foreign->domid, tag_domid(i), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(test, foreign->gref, tag_gref(i), "page %u", i);
}

/* The page's private data, tagged or not, wherever it is. */
static struct xen_page_foreign private_data(struct page *page)
{
#if BITS_PER_LONG < 64
	return *(struct xen_page_foreign *)page_private(page);
#else
	return *(struct xen_page_foreign *)&page->private;
#endif
}

static void expect_no_tag(struct kunit *test, unsigned int i)
{
	struct tag_world *w = test->priv;
	struct xen_page_foreign data = private_data(w->pages[i]);

	KUNIT_EXPECT_FALSE_MSG(test, w->p2m[i], "page %u", i);
	KUNIT_EXPECT_NULL_MSG(test, xen_page_foreign(w->pages[i]), "page %u", i);
	KUNIT_EXPECT_EQ_MSG(test, data.domid, 0, "page %u", i);
	KUNIT_EXPECT_EQ_MSG(test, data.gref, 0, "page %u", i);
}

/* --- mapping */

static void mapped_pages_are_tagged(struct kunit *test)
{
	struct tag_world *w = test->priv;

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_tag(test, i);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
	KUNIT_EXPECT_EQ(test, w->p2m_calls, 1);
}

static void pages_mapped_in_both_halves_are_tagged(struct kunit *test)
{
	struct tag_world *w = test->priv;

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES), 0);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_tag(test, i);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 1);
}

static void halves_that_are_not_one_array_are_refused(struct kunit *test)
{
	struct tag_world *w = test->priv;

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES - 1),
			-EINVAL);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_no_tag(test, i);
	KUNIT_EXPECT_EQ(test, w->hypercalls, 0);
}

static void either_half_is_tried_again(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->map_status[1] = GNTST_eagain;
	w->kmap_status[0] = GNTST_eagain;
	w->kmap_status[1] = GNTST_eagain;
	w->retry_status = GNTST_okay;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES), 0);
	KUNIT_EXPECT_EQ(test, w->retries, 3);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_tag(test, i);
}

static void half_that_is_tried_in_vain_leaves_no_tag(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->kmap_status[2] = GNTST_eagain;
	w->retry_status = GNTST_bad_page;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES), 0);
	KUNIT_EXPECT_EQ(test, w->retries, 1);
	expect_tag(test, 1);
	expect_no_tag(test, 2);
	expect_tag(test, 3);
	KUNIT_EXPECT_EQ(test, w->kmap[2].status, GNTST_bad_page);
}

static void page_whose_grant_cannot_be_mapped_is_not_tagged(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->map_status[0] = GNTST_no_device_space;
	w->map_status[2] = GNTST_bad_gntref;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	expect_no_tag(test, 0);
	expect_tag(test, 1);
	expect_no_tag(test, 2);
	expect_tag(test, 3);
	KUNIT_EXPECT_EQ(test, w->map[0].status, GNTST_no_device_space);
	KUNIT_EXPECT_EQ(test, w->map[2].status, GNTST_bad_gntref);
}

static void page_whose_kernel_half_cannot_be_mapped_is_not_tagged(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->kmap_status[1] = GNTST_no_device_space;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES), 0);
	expect_tag(test, 0);
	expect_no_tag(test, 1);
	expect_tag(test, 2);
	/* The other half is mapped, and has to be unmapped by its handle. */
	KUNIT_EXPECT_EQ(test, w->map[1].status, GNTST_okay);
	KUNIT_EXPECT_EQ(test, w->map[1].handle, 1);
}

static void page_without_a_p2m_entry_is_not_tagged(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->p2m_fails[0] = true;
	w->p2m_fails[3] = true;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	expect_no_tag(test, 0);
	expect_tag(test, 1);
	expect_tag(test, 2);
	expect_no_tag(test, 3);
	KUNIT_EXPECT_EQ(test, w->map[0].status, GNTST_general_error);
}

static void no_page_is_tagged_when_the_hypercall_fails(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->map_ret = -EFAULT;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), -EFAULT);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_no_tag(test, i);
	KUNIT_EXPECT_EQ(test, w->p2m_calls, 0);
}

static void no_page_is_tagged_when_the_p2m_cannot_be_set_up(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->p2m_ret = -ENOMEM;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, w->kmap, w->pages, TAG_PAGES), -ENOMEM);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		expect_no_tag(test, i);
}

/* --- private data */

/*
 * On 32 bits the private data is memory of its own. It has to be there as long as
 * grants may be mapped onto the page, tagged or not. On 64 bits it is in struct page.
 */
static void private_data_outlasts_the_tag(struct kunit *test)
{
	struct tag_world *w = test->priv;
	unsigned long before = page_private(w->pages[0]);

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, 1), 0);
	expect_tag(test, 0);
	if (BITS_PER_LONG < 64) {
		KUNIT_EXPECT_NE(test, before, 0);
		KUNIT_EXPECT_EQ(test, page_private(w->pages[0]), before);
	}

	ClearPageForeign(w->pages[0]);
	KUNIT_EXPECT_NULL(test, xen_page_foreign(w->pages[0]));
	KUNIT_EXPECT_TRUE(test, PagePrivate(w->pages[0]));
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, 1), 0);
	expect_tag(test, 0);
}

/* In pages of files and of the swap cache, the bit and the data mean something else. */
static void pages_that_are_cached_are_not_foreign(struct kunit *test)
{
	struct tag_world *w = test->priv;
	struct page *page = w->pages[0];
	struct address_space mapping;

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, 1), 0);
	page->mapping = &mapping;
	KUNIT_EXPECT_NULL(test, xen_page_foreign(page));
	page->mapping = NULL;
	expect_tag(test, 0);
	__folio_set_swapbacked(page_folio(page));
	KUNIT_EXPECT_NULL(test, xen_page_foreign(page));
	__folio_clear_swapbacked(page_folio(page));
	expect_tag(test, 0);
}

static void private_data_is_dropped_once(struct kunit *test)
{
	struct tag_world *w = test->priv;

	gnttab_pages_clear_private(TAG_PAGES, w->pages);
	for (unsigned int i = 0; i < TAG_PAGES; i++)
		KUNIT_EXPECT_FALSE(test, PagePrivate(w->pages[i]));
	/* On 32 bits a mistake would free it twice. */
	gnttab_pages_clear_private(TAG_PAGES, w->pages);
}

/* --- a page whose grant is still mapped is not handed out again */

static void foreign_page_is_not_freed(struct kunit *test)
{
	struct tag_world *w = test->priv;

	w->map_status[0] = GNTST_bad_gntref;
	w->map_status[1] = GNTST_bad_gntref;
	w->map_status[3] = GNTST_bad_gntref;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	gnttab_free_pages(TAG_PAGES, w->pages);

	KUNIT_ASSERT_EQ(test, w->freed_count, 3);
	KUNIT_EXPECT_PTR_EQ(test, w->freed[0], w->pages[0]);
	KUNIT_EXPECT_PTR_EQ(test, w->freed[1], w->pages[1]);
	KUNIT_EXPECT_PTR_EQ(test, w->freed[2], w->pages[3]);
	KUNIT_EXPECT_FALSE(test, PagePrivate(w->pages[0]));
	/* The tag still tells whose frame it is. */
	KUNIT_EXPECT_TRUE(test, PagePrivate(w->pages[2]));
	expect_tag(test, 2);
}

static void pages_that_are_not_foreign_are_freed_together(struct kunit *test)
{
	struct tag_world *w = test->priv;

	gnttab_free_pages(TAG_PAGES, w->pages);
	KUNIT_EXPECT_EQ(test, w->free_calls, 1);
	KUNIT_EXPECT_EQ(test, w->freed_count, TAG_PAGES);
}

static void only_foreign_pages_leave_nothing_to_free(struct kunit *test)
{
	struct tag_world *w = test->priv;

	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	gnttab_free_pages(TAG_PAGES, w->pages);
	KUNIT_EXPECT_EQ(test, w->free_calls, 0);
}

static void foreign_page_is_not_put_into_the_cache(struct kunit *test)
{
	struct tag_world *w = test->priv;
	struct gnttab_page_cache cache;
	struct page *page;

	w->map_status[1] = GNTST_bad_gntref;
	KUNIT_EXPECT_EQ(test, gnttab_map_refs(w->map, NULL, w->pages, TAG_PAGES), 0);
	gnttab_page_cache_init(&cache);
	gnttab_page_cache_put(&cache, w->pages, TAG_PAGES);
	KUNIT_ASSERT_EQ(test, cache.num_pages, 1);
	KUNIT_ASSERT_EQ(test, gnttab_page_cache_get(&cache, &page), 0);
	KUNIT_EXPECT_PTR_EQ(test, page, w->pages[1]);
	KUNIT_EXPECT_EQ(test, cache.num_pages, 0);
	KUNIT_EXPECT_TRUE(test, cache_empty(&cache));
}

static struct kunit_case grant_table_cases[] = {
	KUNIT_CASE(mapped_pages_are_tagged),
	KUNIT_CASE(pages_mapped_in_both_halves_are_tagged),
	KUNIT_CASE(halves_that_are_not_one_array_are_refused),
	KUNIT_CASE(either_half_is_tried_again),
	KUNIT_CASE(half_that_is_tried_in_vain_leaves_no_tag),
	KUNIT_CASE(page_whose_grant_cannot_be_mapped_is_not_tagged),
	KUNIT_CASE(page_whose_kernel_half_cannot_be_mapped_is_not_tagged),
	KUNIT_CASE(page_without_a_p2m_entry_is_not_tagged),
	KUNIT_CASE(no_page_is_tagged_when_the_hypercall_fails),
	KUNIT_CASE(no_page_is_tagged_when_the_p2m_cannot_be_set_up),
	KUNIT_CASE(private_data_outlasts_the_tag),
	KUNIT_CASE(pages_that_are_cached_are_not_foreign),
	KUNIT_CASE(private_data_is_dropped_once),
	KUNIT_CASE(foreign_page_is_not_freed),
	KUNIT_CASE(pages_that_are_not_foreign_are_freed_together),
	KUNIT_CASE(only_foreign_pages_leave_nothing_to_free),
	KUNIT_CASE(foreign_page_is_not_put_into_the_cache),
	{}
};

static struct kunit_suite grant_table_suite = {
	.name = "xen-grant-table",
	.init = tag_world_init,
	.exit = tag_world_exit,
	.test_cases = grant_table_cases,
};

kunit_test_suite(grant_table_suite);
