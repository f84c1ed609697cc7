// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of vm_normal_page() for VMAs with special PTEs, with and without
 * vma->pages.
 *
 * The VMAs are not in the address space of any process, because vm_normal_page()
 * looks only at a VMA and a PTE. tools/testing/vma tests with the real code that the
 * parts of a split VMA keep its pages.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>

#define NR_PAGES	8
/* Where the mapping begins, in the file and in memory */
#define FIRST_PGOFF	1000UL
#define START		0x10000000UL
/* A value that swap_readahead_info may have, which is not an address */
#define READAHEAD	0x1234567UL

struct world {
	struct mm_struct *mm;
	struct vm_area_struct *vma;
	struct page *pages[NR_PAGES];
	struct vma_page_array array;
};

static unsigned long address(unsigned int i)
{
	return START + i * PAGE_SIZE;
}

/* Look up page @i by a special PTE. It maps the zero page, which must not be found. */
static struct page *look_up(struct world *w, unsigned int i)
{
	pte_t pte = mk_pte(ZERO_PAGE(0), PAGE_READONLY);

	return vm_normal_page(w->vma, address(i), pte_mkspecial(pte));
}

/* Expect @count pages from @first on at the addresses where they belong. */
static void expect_pages(struct kunit *test, unsigned int first, unsigned int count)
{
	struct world *w = test->priv;

	for (unsigned int i = first; i < first + count; i++)
		KUNIT_EXPECT_PTR_EQ_MSG(test, look_up(w, i), w->pages[i], "page %u", i);
}

static int set_pages(struct world *w)
{
	int ret;

	mmap_write_lock(w->mm);
	ret = vma_set_pages(w->vma, &w->array);
	mmap_write_unlock(w->mm);
	return ret;
}

/* Do to the VMA what swapping in a page does. */
static void swap_in(struct world *w)
{
#ifdef CONFIG_SWAP
	atomic_long_set(&w->vma->swap_readahead_info, READAHEAD);
#endif
}

static void every_address_has_its_page(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	expect_pages(test, 0, NR_PAGES);
}

static void normal_pte_has_its_own_page(struct kunit *test)
{
	struct world *w = test->priv;

	pte_t pte = mk_pte(w->pages[5], PAGE_READONLY);

	KUNIT_EXPECT_PTR_EQ(test, vm_normal_page(w->vma, address(0), pte), w->pages[5]);
	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	KUNIT_EXPECT_PTR_EQ(test, vm_normal_page(w->vma, address(0), pte), w->pages[5]);
}

static void entry_that_is_cleared_has_no_page(struct kunit *test)
{
	struct world *w = test->priv;
	struct page *page = w->pages[3];

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	w->pages[3] = NULL;
	KUNIT_EXPECT_NULL(test, look_up(w, 3));
	expect_pages(test, 4, 2);
	w->pages[3] = page;
	expect_pages(test, 3, 1);
}

static void address_beyond_the_pages_has_none(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	w->array.nr = 5;
	expect_pages(test, 0, 5);
	KUNIT_EXPECT_NULL(test, look_up(w, 5));
	w->array.nr = 0;
	KUNIT_EXPECT_NULL(test, look_up(w, 0));
	w->array.nr = NR_PAGES;
	w->array.pgoff = FIRST_PGOFF + 2;
	KUNIT_EXPECT_NULL(test, look_up(w, 0));
	KUNIT_EXPECT_NULL(test, look_up(w, 1));
	KUNIT_EXPECT_PTR_EQ(test, look_up(w, 2), w->pages[0]);
	w->vma->vm_pgoff = 0;
	w->array.pgoff = ULONG_MAX;
	w->array.nr = 1;
	KUNIT_EXPECT_NULL(test, look_up(w, 0));
}

/* Do to the VMA what a split does to vm_start, vm_end and vm_pgoff. */
static void part_of_a_vma_has_its_pages(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	w->vma->vm_end = address(6);
	expect_pages(test, 0, 6);
	w->vma->vm_start = address(2);
	w->vma->vm_pgoff = FIRST_PGOFF + 2;
	expect_pages(test, 2, 4);
}

/* A split begins with a copy of the VMA. */
static void copy_of_a_vma_has_its_pages(struct kunit *test)
{
	struct world *w = test->priv;
	struct vm_area_struct *copy;

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	copy = vm_area_dup(w->vma);
	KUNIT_ASSERT_NOT_NULL(test, copy);
	KUNIT_EXPECT_PTR_EQ(test, vma_page_array(copy), &w->array);
	vm_area_free(copy);
}

static void mapping_without_pages_has_none(struct kunit *test)
{
	struct world *w = test->priv;
	static const vm_flags_t special[] = {
		VM_PFNMAP, VM_MIXEDMAP,
		VM_PFNMAP | VM_SHARED | VM_MAYWRITE, VM_MIXEDMAP | VM_SHARED | VM_MAYWRITE,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(special); i++) {
		vm_flags_init(w->vma, special[i]);
		KUNIT_EXPECT_NULL_MSG(test, look_up(w, 0), "flags %#lx", special[i]);
	}
}

/* In a VMA that may have anonymous pages, the same word means something else. */
static void readahead_is_not_taken_for_pages(struct kunit *test)
{
	struct world *w = test->priv;
	static const vm_flags_t may_have_anonymous_pages[] = {
		VM_READ | VM_MAYREAD | VM_MAYWRITE,
		VM_PFNMAP | VM_MAYWRITE,
		VM_MIXEDMAP | VM_MAYWRITE,
	};

	if (!IS_ENABLED(CONFIG_SWAP))
		kunit_skip(test, "no CONFIG_SWAP");
	swap_in(w);
	for (unsigned int i = 0; i < ARRAY_SIZE(may_have_anonymous_pages); i++) {
		vm_flags_init(w->vma, may_have_anonymous_pages[i]);
		KUNIT_EXPECT_NULL(test, vma_page_array(w->vma));
		KUNIT_EXPECT_NULL(test, look_up(w, 0));
	}
}

static void zero_page_is_not_normal(struct kunit *test)
{
	struct world *w = test->priv;

	vm_flags_init(w->vma, VM_READ | VM_MAYREAD | VM_MAYWRITE);
	KUNIT_EXPECT_NULL(test, look_up(w, 0));
}

static void vma_that_is_copied_on_write_gets_no_pages(struct kunit *test)
{
	struct world *w = test->priv;

	vm_flags_init(w->vma, VM_READ | VM_MAYREAD | VM_MAYWRITE);
	swap_in(w);
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	vm_flags_init(w->vma, VM_SHARED | VM_MAYWRITE | VM_PFNMAP);
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	KUNIT_EXPECT_NULL(test, vma_page_array(w->vma));
}

static void pages_have_to_cover_the_vma(struct kunit *test)
{
	struct world *w = test->priv;

	w->array.nr = NR_PAGES - 1;
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	w->array.nr = NR_PAGES;
	w->array.pgoff = FIRST_PGOFF + 1;
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	w->array.pgoff = FIRST_PGOFF - 1;
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	w->array.pgoff = FIRST_PGOFF - NR_PAGES - 1;
	KUNIT_EXPECT_EQ(test, set_pages(w), -EINVAL);
	KUNIT_EXPECT_NULL(test, vma_page_array(w->vma));

	w->vma->vm_end = address(NR_PAGES - 1);
	w->array.pgoff = FIRST_PGOFF - 1;
	KUNIT_EXPECT_EQ(test, set_pages(w), 0);
}

static void vma_with_pages_is_special(struct kunit *test)
{
	struct world *w = test->priv;

	KUNIT_ASSERT_EQ(test, set_pages(w), 0);
	/* With these flags it is not merged, see VM_SPECIAL, and not expanded. */
	KUNIT_EXPECT_EQ(test, w->vma->vm_flags & (VM_MIXEDMAP | VM_DONTEXPAND),
			VM_MIXEDMAP | VM_DONTEXPAND);
}

static void vma_pages_test_free(void *data)
{
	struct world *w = data;

	if (w->vma)
		vm_area_free(w->vma);
	if (w->mm)
		mmput(w->mm);
	for (unsigned int i = 0; i < NR_PAGES; i++)
		if (w->pages[i])
			__free_page(w->pages[i]);
}

static int vma_pages_test_init(struct kunit *test)
{
	struct world *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, w);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, vma_pages_test_free, w), 0);
	for (unsigned int i = 0; i < NR_PAGES; i++) {
		w->pages[i] = alloc_page(GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, w->pages[i]);
	}
	w->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, w->mm);
	w->vma = vm_area_alloc(w->mm);
	KUNIT_ASSERT_NOT_NULL(test, w->vma);
	w->vma->vm_start = START;
	w->vma->vm_end = address(NR_PAGES);
	w->vma->vm_pgoff = FIRST_PGOFF;
	vm_flags_init(w->vma, VM_SHARED | VM_MAYREAD | VM_MAYWRITE);
	w->array = (struct vma_page_array){
		.pgoff = FIRST_PGOFF, .nr = NR_PAGES, .pages = w->pages,
	};
	test->priv = w;
	return 0;
}

static struct kunit_case vma_pages_cases[] = {
	KUNIT_CASE(every_address_has_its_page),
	KUNIT_CASE(normal_pte_has_its_own_page),
	KUNIT_CASE(entry_that_is_cleared_has_no_page),
	KUNIT_CASE(address_beyond_the_pages_has_none),
	KUNIT_CASE(part_of_a_vma_has_its_pages),
	KUNIT_CASE(copy_of_a_vma_has_its_pages),
	KUNIT_CASE(mapping_without_pages_has_none),
	KUNIT_CASE(readahead_is_not_taken_for_pages),
	KUNIT_CASE(zero_page_is_not_normal),
	KUNIT_CASE(vma_that_is_copied_on_write_gets_no_pages),
	KUNIT_CASE(pages_have_to_cover_the_vma),
	KUNIT_CASE(vma_with_pages_is_special),
	{}
};

static struct kunit_suite vma_pages_suite = {
	.name = "vma-pages",
	.init = vma_pages_test_init,
	.test_cases = vma_pages_cases,
};

kunit_test_suite(vma_pages_suite);

MODULE_DESCRIPTION("KUnit tests of vma->pages");
MODULE_LICENSE("GPL");
