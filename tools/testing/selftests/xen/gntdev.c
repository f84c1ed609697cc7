// SPDX-License-Identifier: GPL-2.0
/*
 * Memory mapped from grants can be shared, used for I/O, and unmapped while it is
 * in use.
 *
 * A page is in use while the kernel holds it for somebody: in a pipe, under a
 * long-term pin, in a registered buffer, or for direct I/O that has not ended.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>

#include "xen_grant.h"
#include "direct_io.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(gntdev)
{
	struct xen_env env;
	struct grants *grants;
	grant_ref_t *ref;
	int pipe[2];
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(gntdev)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->grants = &self->env.grants;
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
}

FIXTURE_TEARDOWN(gntdev)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	xen_env_teardown(_metadata, &self->env);
}

#define mapped(i)	grant_mapped(&self->env.table, self->ref[i])
#define granted(i)	page(self->grants->mem, i)

/* Sharing */

TEST_F(gntdev, both_sides_see_what_the_other_writes)
{
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, MAX_GRANTS, RW);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < MAX_GRANTS; i++) {
		EXPECT_TRUE(mapped(i));
		EXPECT_TRUE(page_holds(page(mem, i), i));
		fill_page(page(mem, i), ~i);
	}
	for (i = 0; i < MAX_GRANTS; i++) {
		EXPECT_TRUE(page_holds(granted(i), ~i));
		fill_page(granted(i), i + 1000);
	}
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(page_holds(page(mem, i), i + 1000));

	ASSERT_EQ(0, munmap(mem, MAX_GRANTS * PAGE_SIZE));
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_FALSE(mapped(i));
}

TEST_F(gntdev, pipe_takes_mapped_pages)
{
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 8, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 8));
	for (i = 0; i < 8; i++) {
		ASSERT_TRUE(drain(self->pipe, self->copy));
		EXPECT_TRUE(page_holds(self->copy, i));
	}
	ASSERT_EQ(0, munmap(mem, 8 * PAGE_SIZE));
}

TEST_F(gntdev, process_vm_readv_and_writev_reach_the_granting_side)
{
	struct iovec local = { self->copy, PAGE_SIZE };
	struct iovec remote = { .iov_len = PAGE_SIZE };
	int status;
	pid_t pid;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 2, RW);
	ASSERT_NE(MAP_FAILED, mem);
	if (process_vm_readv(getpid(), &local, 1, &local, 1, 0) < 0)
		SKIP(return, "process_vm_readv(): %s", strerror(errno));

	/* The same from a process that does not map the grants itself */
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		remote.iov_base = page(mem, 1);
		if (process_vm_readv(getppid(), &local, 1, &remote, 1, 0) !=
		    PAGE_SIZE || !page_holds(self->copy, 1))
			_exit(1);
		remote.iov_base = mem;
		if (process_vm_writev(getppid(), &local, 1, &remote, 1, 0) !=
		    PAGE_SIZE)
			_exit(2);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(page_holds(granted(0), 1));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

/* Unmapping pages that are in use */

TEST_F(gntdev, munmap_with_page_in_pipe_keeps_data)
{
	char *mem, *mine = granted(0);

	mem = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 1));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	EXPECT_TRUE(mapped(0));

	/* The pipe holds the granted page itself, not a copy. */
	mine[PAGE_SIZE / 2] ^= 0xff;
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_EQ(0, memcmp(self->copy, mine, PAGE_SIZE));
	mine[PAGE_SIZE / 2] ^= 0xff;
	EXPECT_TRUE(page_holds(mine, 0));

	EXPECT_TRUE(wait_for(!mapped(0)));
}

TEST_F(gntdev, grant_is_revoked_once_the_pipe_is_drained)
{
	grant_ref_t ref = self->ref[0];
	char *mem;

	mem = gntdev_map(self->env.gntdev, &ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 1));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));

	/* The granting side gives up. That ends all its grants but this one. */
	grants_close(self->grants);
	EXPECT_TRUE(grant_mapped(&self->env.table, ref));
	EXPECT_TRUE(grant_flags(&self->env.table, ref) & GTF_permit_access);

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(wait_for(!grant_flags(&self->env.table, ref)));
	EXPECT_EQ(MAP_FAILED, gntdev_map(self->env.gntdev, &ref, 1, RW));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(gntdev, munmap_under_longterm_pin_keeps_data)
{
	char copy[4 * PAGE_SIZE];
	struct pin pin;
	unsigned int i;
	char *mem;

	if (pin_open(&pin))
		SKIP(return, "no gup_test, and no io_uring: %s", strerror(errno));

	mem = gntdev_map(self->env.gntdev, self->ref, 4, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, pin_hold(&pin, mem, 4 * PAGE_SIZE));
	ASSERT_EQ(0, munmap(mem, 4 * PAGE_SIZE));

	fill_page(granted(2), 1234);
	ASSERT_EQ(0, pin_read(&pin, copy));
	for (i = 0; i < 4; i++) {
		EXPECT_TRUE(mapped(i));
		EXPECT_TRUE(page_holds(page(copy, i), i == 2 ? 1234 : i));
	}

	ASSERT_EQ(0, pin_release(&pin));
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
	pin_close(&pin);
}

TEST_F(gntdev, munmap_of_registered_buffer_keeps_it_usable)
{
	struct disk disk;
	struct uring u;
	char *mem;

	if (!uring_works())
		SKIP(return, "io_uring: %s", strerror(errno));
	ASSERT_EQ(0, disk_open(&disk));
	mem = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, uring_open(&u, mem, PAGE_SIZE));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));

	/* The buffer is known to the ring by its old address. */
	ASSERT_EQ(PAGE_SIZE, uring_submit(&u, disk.fd, true, mem, PAGE_SIZE));
	ASSERT_EQ(PAGE_SIZE, pread(disk.memfd, self->copy, PAGE_SIZE, 0));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(mapped(0));

	fill_page(self->copy, 99);
	ASSERT_EQ(PAGE_SIZE, pwrite(disk.memfd, self->copy, PAGE_SIZE, 0));
	ASSERT_EQ(PAGE_SIZE, uring_submit(&u, disk.fd, false, mem, PAGE_SIZE));
	EXPECT_TRUE(page_holds(granted(0), 99));

	uring_close(&u);
	EXPECT_TRUE(wait_for(!mapped(0)));
	disk_close(&disk);
}

TEST_F(gntdev, two_partial_munmaps_each_with_a_page_in_a_pipe)
{
	int other[2];
	char *mem;

	ASSERT_EQ(0, pipe(other));
	mem = gntdev_map(self->env.gntdev, self->ref, 2, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 1));
	ASSERT_TRUE(hold(other, page(mem, 1), 1));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	ASSERT_EQ(0, munmap(page(mem, 1), PAGE_SIZE));
	EXPECT_TRUE(mapped(0));
	EXPECT_TRUE(mapped(1));

	/* Each page waits for itself alone, now that the whole map is gone. */
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(wait_for(!mapped(0)));
	EXPECT_TRUE(mapped(1));

	ASSERT_TRUE(drain(other, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 1));
	EXPECT_TRUE(wait_for(!mapped(1)));
	close(other[0]);
	close(other[1]);
}

TEST_F(gntdev, munmap_of_a_held_hole_then_of_the_rest)
{
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 8, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, page(mem, 3), 2));
	ASSERT_EQ(0, munmap(page(mem, 3), 2 * PAGE_SIZE));
	for (i = 0; i < 8; i++)
		EXPECT_TRUE(mapped(i));

	/* The rest can be used, on either side of the hole. */
	fill_page(page(mem, 2), 102);
	fill_page(page(mem, 5), 105);
	EXPECT_TRUE(page_holds(granted(2), 102));
	EXPECT_TRUE(page_holds(granted(5), 105));
	ASSERT_TRUE(hold(self->pipe, page(mem, 7), 1));
	ASSERT_EQ(0, munmap(mem, 8 * PAGE_SIZE));
	EXPECT_TRUE(mapped(3));
	EXPECT_TRUE(mapped(4));
	EXPECT_TRUE(mapped(7));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 3));
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 4));
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 7));
	for (i = 0; i < 8; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
}

/*
 * gntalloc makes one grant of a page. The test makes a second one of the same page,
 * by writing the page's frame into another entry of the grant table. Xen does not
 * look at that entry until it is mapped.
 */
TEST_F(gntdev, frame_granted_twice_is_held_through_one_reference_only)
{
	struct grant_entry *entry = self->env.table.entry;
	__u32 frame = entry[self->ref[1]].frame;
	char *first, *second;

	entry[self->ref[1]].frame = entry[self->ref[0]].frame;
	first = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	second = gntdev_map(self->env.gntdev, self->ref + 1, 1, RW);
	entry[self->ref[1]].frame = frame;
	ASSERT_NE(MAP_FAILED, first);
	ASSERT_NE(MAP_FAILED, second);
	EXPECT_TRUE(page_holds(second, 0));
	fill_page(second, 55);
	EXPECT_TRUE(page_holds(first, 55));

	ASSERT_TRUE(hold(self->pipe, first, 1));
	ASSERT_EQ(0, munmap(first, PAGE_SIZE));
	ASSERT_EQ(0, munmap(second, PAGE_SIZE));
	EXPECT_TRUE(wait_for(!mapped(1)));
	EXPECT_TRUE(mapped(0));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 55));
	EXPECT_TRUE(wait_for(!mapped(0)));
}

TEST_F(gntdev, grant_mapped_twice_is_held_through_both_mappings)
{
	char *first, *second;
	int other[2];

	ASSERT_EQ(0, pipe(other));
	first = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	second = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, first);
	ASSERT_NE(MAP_FAILED, second);
	ASSERT_TRUE(hold(self->pipe, first, 1));
	ASSERT_TRUE(hold(other, second, 1));
	ASSERT_EQ(0, munmap(first, PAGE_SIZE));
	ASSERT_EQ(0, munmap(second, PAGE_SIZE));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(mapped(0));
	fill_page(granted(0), 66);
	ASSERT_TRUE(drain(other, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 66));
	EXPECT_TRUE(wait_for(!mapped(0)));
	close(other[0]);
	close(other[1]);
}

/*
 * Two threads drop the same mapping at the same time, again and again. Each grant is
 * unmapped once, whichever thread comes first. The test needs two CPUs to mean
 * anything.
 */
#define NR_DROPS	300

struct dropper {
	pthread_t thread;
	pthread_barrier_t barrier;
	char *mem;
};

static void drop(struct dropper *d)
{
	pthread_barrier_wait(&d->barrier);	/* It is mapped. */
	madvise(d->mem, MAX_GRANTS * PAGE_SIZE, MADV_DONTNEED);
	pthread_barrier_wait(&d->barrier);	/* Both have returned. */
}

static void *keep_dropping(void *data)
{
	unsigned int i;

	for (i = 0; i < NR_DROPS; i++)
		drop(data);
	return NULL;
}

TEST_F_TIMEOUT(gntdev, two_threads_drop_the_same_mapping, 120)
{
	struct dropper d;
	unsigned int i;
	__s64 index;

	ASSERT_EQ(0, pthread_barrier_init(&d.barrier, NULL, 2));
	ASSERT_EQ(0, pthread_create(&d.thread, NULL, keep_dropping, &d));
	for (i = 0; i < NR_DROPS; i++) {
		index = gntdev_add(self->env.gntdev, granter_domid(), self->ref,
				   MAX_GRANTS);
		ASSERT_LE(0, index);
		d.mem = mmap(NULL, MAX_GRANTS * PAGE_SIZE, RW, MAP_SHARED,
			     self->env.gntdev, index);
		ASSERT_NE(MAP_FAILED, d.mem);
		ASSERT_EQ(0, gntdev_remove(self->env.gntdev, index,
					   MAX_GRANTS));
		drop(&d);
		ASSERT_EQ(0, munmap(d.mem, MAX_GRANTS * PAGE_SIZE));
	}
	ASSERT_EQ(0, pthread_join(d.thread, NULL));
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_FALSE(mapped(i));
}

/*
 * There are many mappings at a time, each of a random range of the grants. A random
 * part of each is held. They are munmapped and released in random order.
 */
#define NR_MAPS		1000
#define NR_SLOTS	32
#define MAX_RANGE	8

struct slot {
	char *mem;
	__s64 index;
	unsigned int first, count;	/* the grants mapped; 0: unused */
	unsigned int left;		/* pages not munmapped yet */
	unsigned int held_first, held;
	bool present[MAX_RANGE];
	int pipe[2];
};

static bool slot_map(struct slot *s, int gntdev, const grant_ref_t *ref)
{
	s->count = 1 + below(MAX_RANGE);
	s->first = below(MAX_GRANTS - s->count + 1);
	s->left = s->count;
	memset(s->present, true, s->count);
	s->index = gntdev_add(gntdev, granter_domid(), ref + s->first, s->count);
	s->mem = mmap(NULL, s->count * PAGE_SIZE, RW, MAP_SHARED, gntdev,
		      s->index);
	if (s->mem == MAP_FAILED)
		return false;

	s->held_first = below(s->count);
	s->held = below(s->count - s->held_first + 1);
	return !s->held ||
	       hold(s->pipe, page(s->mem, s->held_first), s->held);
}

/* Others may have mapped something where a page is gone: leave that alone. */
static bool slot_munmap(struct slot *s, int gntdev)
{
	unsigned int first = below(s->count), count = 0;
	unsigned int max = 1 + below(s->count);

	while (!s->present[first])
		first = (first + 1) % s->count;
	while (count < max && first + count < s->count &&
	       s->present[first + count])
		s->present[first + count++] = false;
	if (munmap(page(s->mem, first), count * PAGE_SIZE))
		return false;

	s->left -= count;
	return s->left || !gntdev_remove(gntdev, s->index, s->count);
}

static bool slot_release(struct slot *s, void *copy)
{
	for (; s->held; s->held--, s->held_first++)
		if (!drain(s->pipe, copy) ||
		    !page_holds(copy, s->first + s->held_first))
			return false;
	return true;
}

TEST_F_TIMEOUT(gntdev, random_ranges_held_and_released, 300)
{
	const char *env = getenv("XEN_SELFTEST_SEED");
	unsigned int seed = env ? strtoul(env, NULL, 0) : time(NULL);
	struct slot slots[NR_SLOTS] = { };
	unsigned int i, maps = 0, live = 0;

	TH_LOG("XEN_SELFTEST_SEED=%u", seed);
	srandom(seed);
	for (i = 0; i < NR_SLOTS; i++)
		ASSERT_EQ(0, pipe(slots[i].pipe));

	while (maps < NR_MAPS || live) {
		struct slot *s = &slots[below(NR_SLOTS)];

		if (!s->count) {
			if (maps == NR_MAPS)
				continue;
			ASSERT_TRUE(slot_map(s, self->env.gntdev, self->ref));
			maps++;
			live++;
		} else if (s->left && (!s->held || below(2))) {
			ASSERT_TRUE(slot_munmap(s, self->env.gntdev));
		} else if (s->held) {
			ASSERT_TRUE(slot_release(s, self->copy));
		}
		if (s->count && !s->left && !s->held) {
			s->count = 0;
			live--;
		}
	}

	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
	for (i = 0; i < NR_SLOTS; i++) {
		close(slots[i].pipe[0]);
		close(slots[i].pipe[1]);
	}
}

/* Another mapping takes the place of one whose pages are held */

#define NR_OLD		8
#define HELD_FIRST	2
#define NR_HELD		4
/* The first grant of the new mapping */
#define NEW_FIRST	16

FIXTURE(map_over)
{
	struct xen_env env;
	grant_ref_t *ref;
	int pipe[2];
	int other[2];
	char *mem;
	char copy[PAGE_SIZE];
};

/* The part of the old mapping that the new one covers */
FIXTURE_VARIANT(map_over)
{
	unsigned int first, count;
};

FIXTURE_VARIANT_ADD(map_over, all) { .first = 0, .count = NR_OLD };
FIXTURE_VARIANT_ADD(map_over, front) { .first = 0, .count = 4 };
FIXTURE_VARIANT_ADD(map_over, middle) { .first = 3, .count = 2 };
FIXTURE_VARIANT_ADD(map_over, back) { .first = 4, .count = 4 };

FIXTURE_SETUP(map_over)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
	ASSERT_EQ(0, pipe(self->other));
	self->mem = gntdev_map(self->env.gntdev, self->ref, NR_OLD, RW);
	ASSERT_NE(MAP_FAILED, self->mem);
	ASSERT_TRUE(hold(self->pipe, page(self->mem, HELD_FIRST), NR_HELD));
}

FIXTURE_TEARDOWN(map_over)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->other[0]);
	close(self->other[1]);
	xen_env_teardown(_metadata, &self->env);
}

static bool is_held(unsigned int i)
{
	return i >= HELD_FIRST && i < HELD_FIRST + NR_HELD;
}

/* The pipe holds the pages of the old mapping. */
static bool drain_old(const int *pipe, void *copy)
{
	unsigned int i;

	for (i = HELD_FIRST; i < HELD_FIRST + NR_HELD; i++)
		if (!drain(pipe, copy) || !page_holds(copy, i))
			return false;
	return true;
}

static void *map_at(void *mem, int gntdev, const grant_ref_t *ref,
		    unsigned int count)
{
	void *new = mmap(mem, count * PAGE_SIZE, RW, MAP_SHARED | MAP_FIXED, gntdev,
			 gntdev_add(gntdev, granter_domid(), ref, count));

	return new == MAP_FAILED || gntdev_leave(gntdev, new) ? MAP_FAILED : new;
}

/*
 * Is the grant of page @i mapped when another mapping is over @count pages of the old
 * one? On PV the grants of these pages are unmapped then, elsewhere those of the whole
 * map when nothing of it is left.
 */
static bool old_is_mapped(unsigned int i, unsigned int first, unsigned int count)
{
	if (i < first || i >= first + count || is_held(i))
		return true;
	return translated() && count < NR_OLD;
}

TEST_F(map_over, held_pages_keeps_both)
{
	unsigned int i, first = variant->first, count = variant->count;
	char *new = page(self->mem, first);

	ASSERT_EQ(new, map_at(new, self->env.gntdev, self->ref + NEW_FIRST, count));
	for (i = 0; i < NR_OLD; i++) {
		bool over = i >= first && i < first + count;

		EXPECT_EQ(old_is_mapped(i, first, count), mapped(i));
		EXPECT_TRUE(page_holds(page(self->mem, i),
				       over ? NEW_FIRST + i - first : i));
	}

	/* A lookup by the address finds the new pages. */
	ASSERT_TRUE(hold(self->other, new, count));
	for (i = 0; i < count; i++) {
		ASSERT_TRUE(drain(self->other, self->copy));
		EXPECT_TRUE(page_holds(self->copy, NEW_FIRST + i));
	}

	ASSERT_TRUE(drain_old(self->pipe, self->copy));
	for (i = first; i < first + count; i++) {
		EXPECT_TRUE(translated() && count < NR_OLD ? mapped(i) :
			    wait_for(!mapped(i)));
		EXPECT_TRUE(mapped(NEW_FIRST + i - first));
	}
	ASSERT_EQ(0, munmap(self->mem, NR_OLD * PAGE_SIZE));
	for (i = 0; i < NR_OLD; i++)
		EXPECT_TRUE(wait_for(!mapped(i) && !mapped(NEW_FIRST + i)));
}

/* mmap() unmaps the old mapping before it calls the driver. */
TEST_F(map_over, held_pages_that_fails_keeps_them)
{
	unsigned int i, first = variant->first, count = variant->count;
	grant_ref_t bad[NR_OLD];
	char *new = page(self->mem, first);

	memcpy(bad, self->ref + NEW_FIRST, sizeof(bad));
	bad[count - 1] = UINT32_MAX;
	EXPECT_EQ(MAP_FAILED, map_at(new, self->env.gntdev, bad, count));
	EXPECT_EQ(EINVAL, errno);
	for (i = 0; i < NR_OLD; i++) {
		bool over = i >= first && i < first + count;

		EXPECT_EQ(old_is_mapped(i, first, count), mapped(i));
		if (!over)
			EXPECT_TRUE(page_holds(page(self->mem, i), i));
	}
	for (i = 0; i < count; i++)
		EXPECT_TRUE(wait_for(!mapped(NEW_FIRST + i)));

	/* Something else can be mapped into the hole. */
	ASSERT_EQ(new, map_at(new, self->env.gntdev, self->ref + NEW_FIRST, count));
	EXPECT_TRUE(page_holds(page(new, count - 1), NEW_FIRST + count - 1));
	ASSERT_TRUE(drain_old(self->pipe, self->copy));
	ASSERT_EQ(0, munmap(self->mem, NR_OLD * PAGE_SIZE));
	for (i = 0; i < NR_OLD; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
}

#define NR_LAYERS	12

/* Each holds a page that the next one unmaps. */
TEST_F(map_over, held_pages_again_and_again)
{
	char *at = page(self->mem, variant->first);
	unsigned int i, count = variant->count;

	for (i = 0; i < NR_LAYERS; i++) {
		ASSERT_EQ(at, map_at(at, self->env.gntdev,
				     self->ref + NEW_FIRST + i, count));
		ASSERT_TRUE(hold(self->other, page(at, count - 1), 1));
	}
	ASSERT_EQ(0, munmap(self->mem, NR_OLD * PAGE_SIZE));
	for (i = 0; i < NR_LAYERS; i++) {
		unsigned int held = NEW_FIRST + i + count - 1;

		EXPECT_TRUE(mapped(held));
		ASSERT_TRUE(drain(self->other, self->copy));
		EXPECT_TRUE(page_holds(self->copy, held));
		EXPECT_TRUE(wait_for(!mapped(held)));
	}
	ASSERT_TRUE(drain_old(self->pipe, self->copy));
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
}

/* Direct I/O */

FIXTURE(direct_io)
{
	struct xen_env env;
	struct disk disk;
	char copy[PAGE_SIZE];
};

FIXTURE_VARIANT(direct_io)
{
	bool (*works)(void);
	ssize_t (*rw)(int fd, bool write, void *buf, size_t len);
};

FIXTURE_VARIANT_ADD(direct_io, plain) {
	.works = plain_works, .rw = plain_rw,
};

FIXTURE_VARIANT_ADD(direct_io, aio) {
	.works = aio_works, .rw = aio_rw,
};

FIXTURE_VARIANT_ADD(direct_io, io_uring) {
	.works = uring_works, .rw = uring_rw,
};

FIXTURE_VARIANT_ADD(direct_io, io_uring_registered) {
	.works = uring_works, .rw = uring_fixed_rw,
};

FIXTURE_SETUP(direct_io)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access("/dev/loop-control", R_OK | W_OK))
		SKIP(return, "no access to /dev/loop-control");
	if (!variant->works())
		SKIP(return, "no such I/O: %s", strerror(errno));
	ASSERT_EQ(0, disk_open(&self->disk));
}

FIXTURE_TEARDOWN(direct_io)
{
	disk_close(&self->disk);
	xen_env_teardown(_metadata, &self->env);
}

#define NR_PAGES	16

TEST_F(direct_io, write_from_a_mapping_reaches_the_disk)
{
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->env.grants.ref, NR_PAGES, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(NR_PAGES * PAGE_SIZE,
		  variant->rw(self->disk.fd, true, mem, NR_PAGES * PAGE_SIZE));

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(PAGE_SIZE, pread(self->disk.memfd, self->copy,
					   PAGE_SIZE, i * PAGE_SIZE));
		EXPECT_TRUE(page_holds(self->copy, i));
	}
	ASSERT_EQ(0, munmap(mem, NR_PAGES * PAGE_SIZE));
}

TEST_F(direct_io, read_into_a_mapping_reaches_the_granting_side)
{
	unsigned int i;
	char *mem;

	for (i = 0; i < NR_PAGES; i++) {
		fill_page(self->copy, i + 500);
		ASSERT_EQ(PAGE_SIZE, pwrite(self->disk.memfd, self->copy,
					    PAGE_SIZE, i * PAGE_SIZE));
	}

	mem = gntdev_map(self->env.gntdev, self->env.grants.ref, NR_PAGES, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(NR_PAGES * PAGE_SIZE,
		  variant->rw(self->disk.fd, false, mem, NR_PAGES * PAGE_SIZE));

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_holds(page(self->env.grants.mem, i), i + 500));
	ASSERT_EQ(0, munmap(mem, NR_PAGES * PAGE_SIZE));
}

/* Direct I/O that ends after the munmap: the disk is suspended meanwhile. */

FIXTURE(in_flight)
{
	struct xen_env env;
	struct disk disk;
	struct dm_disk dm;
	char copy[PAGE_SIZE];
	char *mem;
};

FIXTURE_SETUP(in_flight)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access("/dev/loop-control", R_OK | W_OK))
		SKIP(return, "no access to /dev/loop-control");
	if (access("/dev/mapper/control", R_OK | W_OK))
		SKIP(return, "no access to /dev/mapper/control");
	ASSERT_EQ(0, disk_open(&self->disk));
	ASSERT_EQ(0, dm_open(&self->dm, &self->disk));

	self->mem = gntdev_map(self->env.gntdev, self->env.grants.ref, 1, RW);
	ASSERT_NE(MAP_FAILED, self->mem);
}

FIXTURE_TEARDOWN(in_flight)
{
	dm_close(&self->dm);
	disk_close(&self->disk);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(in_flight, munmap_under_write_keeps_data)
{
	grant_ref_t ref = self->env.grants.ref[0];
	aio_context_t ctx = 0;

	ASSERT_EQ(0, dm_suspend(&self->dm));
	ASSERT_EQ(0, aio_start(&ctx, self->dm.fd, true, self->mem, PAGE_SIZE));
	ASSERT_EQ(0, munmap(self->mem, PAGE_SIZE));
	fill_page(self->env.grants.mem, 300);
	EXPECT_TRUE(aio_in_flight(ctx));
	EXPECT_TRUE(grant_mapped(&self->env.table, ref));

	ASSERT_EQ(0, dm_resume(&self->dm));
	ASSERT_EQ(PAGE_SIZE, aio_finish(ctx));
	ASSERT_EQ(PAGE_SIZE, pread(self->disk.memfd, self->copy, PAGE_SIZE, 0));
	EXPECT_TRUE(page_holds(self->copy, 300));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, ref)));
}

TEST_F(in_flight, munmap_under_read_keeps_data)
{
	grant_ref_t ref = self->env.grants.ref[0];
	aio_context_t ctx = 0;

	fill_page(self->copy, 301);
	ASSERT_EQ(PAGE_SIZE, pwrite(self->disk.memfd, self->copy, PAGE_SIZE, 0));

	ASSERT_EQ(0, dm_suspend(&self->dm));
	ASSERT_EQ(0, aio_start(&ctx, self->dm.fd, false, self->mem, PAGE_SIZE));
	ASSERT_EQ(0, munmap(self->mem, PAGE_SIZE));
	EXPECT_TRUE(aio_in_flight(ctx));
	EXPECT_TRUE(grant_mapped(&self->env.table, ref));
	EXPECT_TRUE(page_holds(self->env.grants.mem, 0));

	ASSERT_EQ(0, dm_resume(&self->dm));
	ASSERT_EQ(PAGE_SIZE, aio_finish(ctx));
	EXPECT_TRUE(page_holds(self->env.grants.mem, 301));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, ref)));
}

/* The process that maps ends while a pipe of another one holds its pages. */

#define MAX_MAPPERS	2

FIXTURE(end_of_process)
{
	struct xen_env env;
	char copy[PAGE_SIZE];
	struct mapper {
		pid_t pid;
		int pipe[2];
	} mapper[MAX_MAPPERS];
};

FIXTURE_VARIANT(end_of_process)
{
	bool killed;
};

FIXTURE_VARIANT_ADD(end_of_process, exit) { .killed = false };
FIXTURE_VARIANT_ADD(end_of_process, sigkill) { .killed = true };

FIXTURE_SETUP(end_of_process)
{
	unsigned int i;

	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	for (i = 0; i < MAX_MAPPERS; i++)
		ASSERT_EQ(0, pipe(self->mapper[i].pipe));
}

FIXTURE_TEARDOWN(end_of_process)
{
	unsigned int i;

	for (i = 0; i < MAX_MAPPERS; i++) {
		if (self->mapper[i].pid > 0)
			kill(self->mapper[i].pid, SIGKILL);
		close(self->mapper[i].pipe[0]);
		close(self->mapper[i].pipe[1]);
	}
	xen_env_teardown(_metadata, &self->env);
}

/* Start a process that maps @count grants, and puts the last page into the pipe. */
static bool mapper_start(struct mapper *m, const grant_ref_t *ref,
			 unsigned int count)
{
	int status;

	m->pid = fork();
	if (!m->pid) {
		/* Not the open file that it shares with its parent */
		int fd = open("/dev/xen/gntdev", O_RDWR);
		void *mem = gntdev_map(fd, ref, count, RW);

		if (mem == MAP_FAILED ||
		    !hold(m->pipe, page(mem, count - 1), 1))
			_exit(1);
		raise(SIGSTOP);
		_exit(0);
	}
	return m->pid > 0 && waitpid(m->pid, &status, WUNTRACED) == m->pid &&
	       WIFSTOPPED(status);
}

static bool mapper_end(struct mapper *m, bool killed)
{
	int status;

	kill(m->pid, killed ? SIGKILL : SIGCONT);
	if (waitpid(m->pid, &status, 0) != m->pid)
		return false;
	m->pid = 0;
	return killed ? WIFSIGNALED(status) : WIFEXITED(status);
}

TEST_F(end_of_process, page_in_a_pipe_keeps_data)
{
	struct mapper *m = self->mapper;
	struct grants *g = &self->env.grants;
	unsigned int i;

	ASSERT_TRUE(mapper_start(m, g->ref, 4));
	ASSERT_TRUE(mapper_end(m, variant->killed));
	EXPECT_TRUE(grant_mapped(&self->env.table, g->ref[3]));

	fill_page(page(g->mem, 3), 400);
	ASSERT_TRUE(drain(m->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 400));
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table,
						   g->ref[i])));
}

TEST_F(end_of_process, of_two_processes_each_keeps_its_page)
{
	struct mapper *m = self->mapper;
	struct grants *g = &self->env.grants;

	/* Both map grants 0 and 1; the first holds 1, the second 2. */
	ASSERT_TRUE(mapper_start(&m[0], g->ref, 2));
	ASSERT_TRUE(mapper_start(&m[1], g->ref, 3));
	ASSERT_TRUE(mapper_end(&m[0], variant->killed));
	EXPECT_TRUE(grant_mapped(&self->env.table, g->ref[0]));
	ASSERT_TRUE(mapper_end(&m[1], variant->killed));
	EXPECT_TRUE(grant_mapped(&self->env.table, g->ref[1]));
	EXPECT_TRUE(grant_mapped(&self->env.table, g->ref[2]));

	ASSERT_TRUE(drain(m[1].pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 2));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, g->ref[2])));
	EXPECT_TRUE(grant_mapped(&self->env.table, g->ref[1]));
	ASSERT_TRUE(drain(m[0].pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 1));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, g->ref[1])));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, g->ref[0])));
}

TEST_HARNESS_MAIN
