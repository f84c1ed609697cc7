// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that are in use when their mapping goes away wait in a queue of the kernel.
 * Their grants are unmapped once the pages are idle. The kernel lists the pages that
 * wait. They keep the module loaded, but neither close() nor the end of a process
 * waits for them. No page is lost by a race or by a lack of memory.
 *
 * XEN_SELFTEST_SEED changes the random numbers. XEN_SELFTEST_ROUNDS is how often two
 * threads race.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "xen_grant.h"
#include "direct_io.h"

#define RW	(PROT_READ | PROT_WRITE)

/* No test ends sooner than it must, but on a slow machine each takes long. */
#define LONG_S	120

#define mapped(i)	grant_mapped(&self->env.table, self->ref[i])
#define granted(i)	page(self->env.grants.mem, i)

static unsigned long number_from_env(const char *name, unsigned long otherwise)
{
	const char *env = getenv(name);

	return env ? strtoul(env, NULL, 0) : otherwise;
}

/* The same numbers each time, unless other ones are asked for */
static unsigned int seed(void)
{
	unsigned int seed = number_from_env("XEN_SELFTEST_SEED", 1);

	srandom(seed);
	return seed;
}

/* The pages that wait, as the kernel lists them */

#define GRANT_UNMAP	"/sys/kernel/debug/xen/grant_unmap/"
#define MAX_WAITING	256

struct waiting {
	unsigned int age_ms;
	char owner[48];
	unsigned int domid;
	unsigned int ref;
	unsigned long pfn;
	int references;
};

struct pending {
	unsigned int count;
	struct waiting page[MAX_WAITING];
};

static bool pending_read(struct pending *p)
{
	FILE *file = fopen(GRANT_UNMAP "pending", "r");
	char line[256];
	bool ok;

	p->count = 0;
	if (!file)
		return false;
	ok = fgets(line, sizeof(line), file) &&
	     !strcmp(line, "age_ms owner domid gref pfn references\n");
	while (ok && p->count < MAX_WAITING && fgets(line, sizeof(line), file)) {
		struct waiting *w = &p->page[p->count++];
		int end = 0;

		ok = sscanf(line, "%u %47s %u %u %lx %d%n", &w->age_ms,
			    w->owner, &w->domid, &w->ref, &w->pfn,
			    &w->references, &end) == 6 && line[end] == '\n';
	}
	fclose(file);
	return ok;
}

/* How many pages wait, or -1 if that cannot be read */
static int pending_count(void)
{
	struct pending p;

	return pending_read(&p) ? (int)p.count : -1;
}

/* Find a page of grant @ref that waits since process @pid has unmapped it. */
static const struct waiting *pending_find(const struct pending *p, pid_t pid,
					  grant_ref_t ref)
{
	char owner[32];
	unsigned int i;

	snprintf(owner, sizeof(owner), "gntdev/%d", pid);
	for (i = 0; i < p->count; i++)
		if (p->page[i].ref == ref && p->page[i].domid == granter_domid() &&
		    !strcmp(p->page[i].owner, owner))
			return &p->page[i];
	return NULL;
}

static const char * const stat_names[] = {
	"deferred", "unmapped", "failed", "leaked", "passes", "attempts",
	"hypercalls",
};

enum {
	DEFERRED, UNMAPPED, FAILED, LEAKED, PASSES, ATTEMPTS, HYPERCALLS,
	NR_STATS
};

static bool stats_read(__u64 *stats)
{
	FILE *file = fopen(GRANT_UNMAP "stats", "r");
	unsigned long long value;
	unsigned int i;
	char name[32];

	if (!file)
		return false;
	for (i = 0; i < NR_STATS; i++) {
		if (fscanf(file, "%31s %llu", name, &value) != 2 ||
		    strcmp(name, stat_names[i]))
			break;
		stats[i] = value;
	}
	fclose(file);
	return i == NR_STATS;
}

/* Read the counters again: none of them has become less. */
static bool stats_grow(__u64 *stats)
{
	__u64 now[NR_STATS];
	unsigned int i;

	if (!stats_read(now))
		return false;
	for (i = 0; i < NR_STATS; i++) {
		if (now[i] < stats[i])
			return false;
		stats[i] = now[i];
	}
	return true;
}

/* The kernel log, from here on */

static int kmsg_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* Wait up to @timeout_ms for the next line that has both @what and @which in it. */
static bool kmsg_wait(int kmsg, const char *what, const char *which,
		      unsigned int timeout_ms)
{
	struct pollfd fd = { .fd = kmsg, .events = POLLIN };
	__u64 now = now_ms(), deadline = now + timeout_ms;
	char line[1024];
	ssize_t len;

	for (;;) {
		len = read(kmsg, line, sizeof(line) - 1);
		if (len > 0) {
			line[len] = 0;
			if (strstr(line, what) && strstr(line, which))
				return true;
		} else if (errno == EAGAIN) {
			now = now_ms();
			if (now >= deadline)
				return false;
			poll(&fd, 1, deadline - now);
		} else if (errno != EPIPE) {
			return false;
		}
	}
}

/* How the kernel log names a page of process @pid that is in use */
static const char *log_name(grant_ref_t ref, pid_t pid)
{
	static char name[64];

	snprintf(name, sizeof(name), "grant %u of domain %u (owner gntdev/%d,",
		 ref, granter_domid(), pid);
	return name;
}

/* Unmapping */

FIXTURE(unmap)
{
	struct xen_env env;
	grant_ref_t *ref;
	int pipe[2];
	int kmsg;
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(unmap)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
	self->kmsg = kmsg_open();
	ASSERT_LE(0, self->kmsg);
}

FIXTURE_TEARDOWN(unmap)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->kmsg);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(unmap, idle_pages_do_not_wait_for_a_busy_one)
{
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 8, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, page(mem, 5), 1));
	ASSERT_EQ(0, munmap(mem, 8 * PAGE_SIZE));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(i == 5, mapped(i));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 5));
	EXPECT_TRUE(wait_for(!mapped(5)));
}

/*
 * An address leads to the page of its own mapping. A frame that is mapped by three
 * grants has three pages, and each page has its own references. See gntdev.c for how
 * these grants are made.
 */
#define NR_ALIASES	3

struct aliases {
	char *mem[NR_ALIASES];
	int pipe[NR_ALIASES][2];
	struct disk disk;
};

static bool aliases_map(struct aliases *a, const struct xen_env *env)
{
	struct grant_entry *entry = env->table.entry;
	const grant_ref_t *ref = env->grants.ref;
	__u32 frame[NR_ALIASES];
	unsigned int i;

	for (i = 0; i < NR_ALIASES; i++) {
		frame[i] = entry[ref[i]].frame;
		entry[ref[i]].frame = frame[0];
		a->mem[i] = gntdev_map(env->gntdev, ref + i, 1, RW);
		entry[ref[i]].frame = frame[i];
		if (a->mem[i] == MAP_FAILED || pipe(a->pipe[i]))
			return false;
	}
	return true;
}

/* Do direct I/O by each address, in both directions. All addresses see its data. */
static bool aliases_io(struct aliases *a, __u32 stamp)
{
	char copy[PAGE_SIZE];
	unsigned int i, j;

	for (i = 0; i < NR_ALIASES; i++) {
		fill_page(copy, stamp + i);
		if (pwrite(a->disk.memfd, copy, PAGE_SIZE, 0) != PAGE_SIZE ||
		    pread(a->disk.fd, a->mem[i], PAGE_SIZE, 0) != PAGE_SIZE)
			return false;
		for (j = 0; j < NR_ALIASES; j++)
			if (!page_holds(a->mem[j], stamp + i))
				return false;
		if (pwrite(a->disk.fd, a->mem[i], PAGE_SIZE, PAGE_SIZE) != PAGE_SIZE ||
		    pread(a->disk.memfd, copy, PAGE_SIZE, PAGE_SIZE) != PAGE_SIZE ||
		    !page_holds(copy, stamp + i))
			return false;
	}
	return true;
}

TEST_F(unmap, frame_granted_three_times_has_three_pages)
{
	static const unsigned char orders[][NR_ALIASES] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
		{ 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	const struct waiting *w[NR_ALIASES];
	struct aliases a = { };
	unsigned int i, j, o;
	struct pending p;

	if (access("/dev/loop-control", R_OK | W_OK))
		SKIP(return, "no access to /dev/loop-control");
	ASSERT_EQ(0, disk_open(&a.disk));
	for (o = 0; o < ARRAY_SIZE(orders); o++) {
		ASSERT_TRUE(aliases_map(&a, &self->env));
		EXPECT_TRUE(aliases_io(&a, 10 * o));
		for (i = 0; i < NR_ALIASES; i++) {
			ASSERT_TRUE(hold(a.pipe[i], a.mem[i], 1));
			ASSERT_EQ(0, munmap(a.mem[i], PAGE_SIZE));
		}
		ASSERT_TRUE(pending_read(&p));
		for (i = 0; i < NR_ALIASES; i++) {
			w[i] = pending_find(&p, getpid(), self->ref[i]);
			ASSERT_NE(NULL, w[i]);
			EXPECT_EQ(2, w[i]->references);
			for (j = 0; j < i; j++)
				EXPECT_NE(w[j]->pfn, w[i]->pfn);
		}
		for (i = 0; i < NR_ALIASES; i++) {
			const unsigned char *order = orders[o];

			for (j = i; j < NR_ALIASES; j++)
				EXPECT_TRUE(mapped(order[j]));
			ASSERT_TRUE(drain(a.pipe[order[i]], self->copy));
			EXPECT_TRUE(page_holds(self->copy, 10 * o + NR_ALIASES - 1));
			EXPECT_TRUE(wait_for(!mapped(order[i])));
			close(a.pipe[order[i]][0]);
			close(a.pipe[order[i]][1]);
		}
	}
	disk_close(&a.disk);
}

/*
 * One map has twice as many pages as there are grants: page i and page i +
 * MAX_GRANTS are of the same grant. Every other page is held by a pipe of its own. A
 * grant stays mapped as long as one of its pages is present or held.
 */
#define NR_SCATTERED	(2 * MAX_GRANTS)
#define MAX_RANGE	8

struct scattered {
	char *mem;
	bool present[NR_SCATTERED];
	bool held[NR_SCATTERED];
	int pipe[NR_SCATTERED][2];
	unsigned int left;
	unsigned int nr_present;
};

static bool scattered_map(struct scattered *s, int gntdev,
			  const grant_ref_t *ref)
{
	grant_ref_t twice[NR_SCATTERED];
	unsigned int i;

	for (i = 0; i < NR_SCATTERED; i++) {
		twice[i] = ref[i % MAX_GRANTS];
		s->present[i] = true;
	}
	s->mem = gntdev_map(gntdev, twice, NR_SCATTERED, RW);
	if (s->mem == MAP_FAILED)
		return false;
	for (i = 1; i < NR_SCATTERED; i += 2) {
		if (!hold(s->pipe[i], page(s->mem, i), 1))
			return false;
		s->held[i] = true;
	}
	s->left = NR_SCATTERED + NR_SCATTERED / 2;
	s->nr_present = NR_SCATTERED;
	return true;
}

/* Munmap some pages from @i on, or release page @i from its pipe. */
static bool scattered_step(struct scattered *s, unsigned int i, void *copy)
{
	unsigned int count = 0, max = 1 + below(MAX_RANGE);

	if (s->held[i] && (!s->present[i] || below(4) == 0)) {
		s->held[i] = false;
		s->left--;
		return drain(s->pipe[i], copy) &&
		       page_holds(copy, i % MAX_GRANTS);
	}
	while (count < max && i + count < NR_SCATTERED && s->present[i + count])
		s->present[i + count++] = false;
	s->left -= count;
	s->nr_present -= count;
	return !count || !munmap(page(s->mem, i), count * PAGE_SIZE);
}

/* Where addresses are translated, no grant goes before the whole map does. */
static bool scattered_used(const struct scattered *s, unsigned int grant)
{
	if (translated() && s->nr_present)
		return true;
	return s->present[grant] || s->held[grant] ||
	       s->present[grant + MAX_GRANTS] || s->held[grant + MAX_GRANTS];
}

TEST_F_TIMEOUT(unmap, many_ranges_of_one_map_in_random_order, LONG_S)
{
	struct scattered s = { };
	unsigned int i, round;

	TH_LOG("XEN_SELFTEST_SEED=%u", seed());
	for (i = 1; i < NR_SCATTERED; i += 2)
		ASSERT_EQ(0, pipe(s.pipe[i]));

	for (round = 0; round < 5; round++) {
		ASSERT_TRUE(scattered_map(&s, self->env.gntdev, self->ref));
		while (s.left) {
			ASSERT_TRUE(scattered_step(&s, below(NR_SCATTERED),
						   self->copy));
			for (i = 0; i < MAX_GRANTS; i++)
				ASSERT_TRUE(scattered_used(&s, i) ? mapped(i) :
					    wait_for(!mapped(i)));
		}
	}

	for (i = 1; i < NR_SCATTERED; i += 2) {
		close(s.pipe[i][0]);
		close(s.pipe[i][1]);
	}
}

/*
 * Processes map, hold and unmap at random, until they are killed at any moment.
 * Nothing stays mapped.
 */
#define NR_PROCESSES	4
#define NR_KILLS	50

static void map_until_killed(const grant_ref_t *ref)
{
	/* When a process ends, the files that it opened last are released first. */
	int gntdev = open("/dev/xen/gntdev", O_RDWR), pipes[2];
	char copy[PAGE_SIZE];

	if (pipe(pipes))
		_exit(1);
	for (;;) {
		unsigned int count = 1 + below(MAX_RANGE);
		unsigned int first = below(MAX_GRANTS - count + 1);
		unsigned int some = below(count), held = 1 + below(count);
		__s64 index = gntdev_add(gntdev, granter_domid(), ref + first, count);
		void *mem = mmap(NULL, count * PAGE_SIZE, RW, MAP_SHARED,
				 gntdev, index);

		if (mem == MAP_FAILED ||
		    !hold(pipes, page(mem, count - held), held) ||
		    (some && munmap(mem, some * PAGE_SIZE)))
			_exit(2);
		for (; held > count / 2; held--)
			if (!drain(pipes, copy) ||
			    !page_holds(copy, first + count - held))
				_exit(3);
		if (munmap(page(mem, some), (count - some) * PAGE_SIZE) ||
		    gntdev_remove(gntdev, index, count))
			_exit(4);
		for (; held; held--)
			if (!drain(pipes, copy) ||
			    !page_holds(copy, first + count - held))
				_exit(5);
	}
}

static pid_t start_mapping(const grant_ref_t *ref, unsigned int seed)
{
	pid_t pid = fork();

	if (!pid) {
		srandom(seed);
		map_until_killed(ref);
	}
	return pid;
}

TEST_F_TIMEOUT(unmap, processes_killed_at_random, LONG_S)
{
	pid_t pid[NR_PROCESSES];
	unsigned int i, n, first = seed();
	int status;

	TH_LOG("XEN_SELFTEST_SEED=%u", first);
	for (n = 0; n < NR_KILLS; n++) {
		i = below(NR_PROCESSES);
		if (n < NR_PROCESSES)
			i = n;
		else
			ASSERT_EQ(0, kill(pid[i], SIGKILL));
		pid[i] = start_mapping(self->ref, first + n);
		ASSERT_LT(0, pid[i]);
		usleep(below(20000));
	}
	for (i = 0; i < NR_PROCESSES; i++)
		ASSERT_EQ(0, kill(pid[i], SIGKILL));
	for (n = 0; n < NR_KILLS; n++) {
		ASSERT_LT(0, wait(&status));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}

	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(wait_for(!mapped(i)));
	if (!access(GRANT_UNMAP "pending", R_OK))
		EXPECT_TRUE(wait_for(pending_count() == 0));
}

/* close() and the end of a process */

static bool killed(pid_t pid)
{
	int status;

	return !kill(pid, SIGKILL) && waitpid(pid, &status, 0) == pid &&
	       WIFSIGNALED(status);
}

/* A slow machine takes less than this, if nobody waits. */
#define CLOSE_MS	5000
#define IN_USE		"pages in use for more than "

/* Open, map, hold and unmap. Only close() is left to do. */
static int open_with_held_page(const int *pipe, const grant_ref_t *ref)
{
	int fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	__s64 index = gntdev_add(fd, granter_domid(), ref, 1);
	void *mem = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED, fd, index);

	if (mem == MAP_FAILED || !hold(pipe, mem, 1) ||
	    munmap(mem, PAGE_SIZE) || gntdev_remove(fd, index, 1)) {
		close(fd);
		return -1;
	}
	return fd;
}

/*
 * A program with one thread can serve nobody while it waits, and it may hold the page
 * itself. A wait that times out is reported in the kernel log.
 */
TEST_F(unmap, close_does_not_wait_for_a_held_page)
{
	int fd = open_with_held_page(self->pipe, self->ref);
	void *mem;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, close(fd));
	EXPECT_FALSE(kmsg_wait(self->kmsg, IN_USE,
			       log_name(self->ref[0], getpid()), 0));
	EXPECT_TRUE(mapped(0));

	/* The device can be opened and the grant be mapped again meanwhile. */
	fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	mem = gntdev_map(fd, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(page_holds(mem, 0));
	fill_page(mem, 9);
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	ASSERT_EQ(0, close(fd));
	EXPECT_TRUE(mapped(0));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 9));
	EXPECT_TRUE(wait_for(!mapped(0)));
}

TEST_F(unmap, held_page_does_not_keep_a_killed_process)
{
	int status;
	pid_t pid;
	__u64 begin;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Not the open file that it shares with its parent */
		int fd = open("/dev/xen/gntdev", O_RDWR);
		void *mem = gntdev_map(fd, self->ref, 1, RW);

		if (mem == MAP_FAILED || !hold(self->pipe, mem, 1))
			_exit(1);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	begin = now_ms();
	ASSERT_TRUE(killed(pid));
	EXPECT_GT(CLOSE_MS, now_ms() - begin);
	EXPECT_TRUE(mapped(0));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(wait_for(!mapped(0)));
}

/* Pages that wait are listed, whoever holds them */

enum how { BY_PIPE, BY_PIN, BY_DIRECT_IO };

struct holder {
	enum how how;
	int pipe[2];
	struct pin pin;
	struct disk disk;
	struct dm_disk dm;
	aio_context_t aio;
	size_t len;
};

static const char *holder_missing(enum how how)
{
	if (how == BY_PIN && access("/sys/kernel/debug/gup_test", R_OK | W_OK) &&
	    !uring_works())
		return "no gup_test, and no io_uring";
	if (how == BY_DIRECT_IO && access("/dev/loop-control", R_OK | W_OK))
		return "no access to /dev/loop-control";
	if (how == BY_DIRECT_IO && access("/dev/mapper/control", R_OK | W_OK))
		return "no access to /dev/mapper/control";
	return NULL;
}

static int holder_open(struct holder *h, enum how how)
{
	h->how = how;
	if (how == BY_PIPE)
		return pipe(h->pipe);
	if (how == BY_DIRECT_IO)
		return disk_open(&h->disk) || dm_open(&h->dm, &h->disk) ||
		       dm_suspend(&h->dm) ? -1 : 0;
	return pin_open(&h->pin);
}

static bool holder_hold(struct holder *h, void *mem, unsigned int count)
{
	h->len = count * PAGE_SIZE;
	if (h->how == BY_PIPE)
		return hold(h->pipe, mem, count);
	if (h->how == BY_DIRECT_IO)
		return !aio_start(&h->aio, h->dm.fd, true, mem, h->len);
	return !pin_hold(&h->pin, mem, h->len);
}

static bool holder_release(struct holder *h)
{
	char copy[PAGE_SIZE];

	if (h->how == BY_DIRECT_IO)
		return !dm_resume(&h->dm) &&
		       aio_finish(h->aio) == (ssize_t)h->len;
	if (h->how == BY_PIN)
		return !pin_release(&h->pin);
	for (; h->len; h->len -= PAGE_SIZE)
		if (!drain(h->pipe, copy))
			return false;
	return true;
}

static void holder_close(struct holder *h)
{
	if (h->how == BY_PIPE) {
		close(h->pipe[0]);
		close(h->pipe[1]);
	} else if (h->how == BY_DIRECT_IO) {
		dm_close(&h->dm);
		disk_close(&h->disk);
	} else {
		pin_close(&h->pin);
	}
}

FIXTURE(listed)
{
	struct xen_env env;
	grant_ref_t *ref;
	struct pending pending;
	struct holder holder;
};

FIXTURE_VARIANT(listed)
{
	enum how how;
};

FIXTURE_VARIANT_ADD(listed, pipe) { .how = BY_PIPE };
FIXTURE_VARIANT_ADD(listed, longterm_pin) { .how = BY_PIN };
FIXTURE_VARIANT_ADD(listed, direct_io) { .how = BY_DIRECT_IO };

FIXTURE_SETUP(listed)
{
	const char *missing = holder_missing(variant->how);

	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access(GRANT_UNMAP "pending", R_OK))
		SKIP(return, "no " GRANT_UNMAP);
	if (missing)
		SKIP(return, "%s", missing);
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, holder_open(&self->holder, variant->how));
	ASSERT_EQ(0, pending_count());
}

FIXTURE_TEARDOWN(listed)
{
	holder_close(&self->holder);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(listed, as_long_as_they_are_held)
{
	struct pending *p = &self->pending;
	const struct waiting *w;
	unsigned int i, age;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 8, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(holder_hold(&self->holder, page(mem, 2), 3));
	EXPECT_EQ(0, pending_count());
	ASSERT_EQ(0, munmap(mem, 8 * PAGE_SIZE));

	ASSERT_TRUE(pending_read(p));
	EXPECT_EQ(3, p->count);
	for (i = 2; i < 5; i++) {
		w = pending_find(p, getpid(), self->ref[i]);
		ASSERT_NE(NULL, w);
		EXPECT_LE(2, w->references);
		EXPECT_GT(WAIT_MS, w->age_ms);
		EXPECT_TRUE(mapped(i));
	}
	EXPECT_NE(p->page[0].pfn, p->page[1].pfn);
	EXPECT_NE(p->page[1].pfn, p->page[2].pfn);
	age = w->age_ms;
	EXPECT_TRUE(wait_for(pending_read(p) &&
			     (w = pending_find(p, getpid(), self->ref[4])) &&
			     w->age_ms > age));

	ASSERT_TRUE(holder_release(&self->holder));
	EXPECT_TRUE(wait_for(pending_count() == 0));
	for (i = 0; i < 8; i++)
		EXPECT_FALSE(mapped(i));
}

/* The flags of /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst) */

#define KPF(bit)	(1ULL << (bit))
#define KPF_LRU		KPF(5)
#define KPF_NOPAGE	KPF(20)		/* The file does not know the page. */
#define KPF_PGTABLE	KPF(26)
#define KPF_PRIVATE	KPF(35)		/* Grants may be mapped onto it. */
#define KPF_FOREIGN	KPF(37)		/* owner_private */

/* Returns only the flags above, and NOPAGE if they cannot be read. */
static __u64 page_flags(unsigned long pfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	__u64 flags = 0;

	if (pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) != sizeof(flags))
		flags = KPF_NOPAGE;
	close(fd);
	return flags & (KPF_LRU | KPF_NOPAGE | KPF_PGTABLE | KPF_PRIVATE | KPF_FOREIGN);
}

TEST_F(listed, as_foreign_pages_until_they_are_unmapped)
{
	struct pending *p = &self->pending;
	const struct waiting *w;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(holder_hold(&self->holder, mem, 1));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	ASSERT_TRUE(pending_read(p));
	w = pending_find(p, getpid(), self->ref[0]);
	ASSERT_NE(NULL, w);
	/* With CONFIG_XEN_UNPOPULATED_ALLOC the file does not know the page. */
	if (page_flags(w->pfn) == KPF_NOPAGE)
		SKIP(return, "pages of unpopulated memory are not in /proc/kpageflags");
	EXPECT_EQ(KPF_PRIVATE | KPF_FOREIGN, page_flags(w->pfn));

	ASSERT_TRUE(holder_release(&self->holder));
	EXPECT_TRUE(wait_for(pending_count() == 0));
	/* The open file keeps the page for the next grant, or the map is gone by now. */
	EXPECT_TRUE(translated() ? wait_for(!(page_flags(w->pfn) & KPF_FOREIGN)) :
		    page_flags(w->pfn) == KPF_PRIVATE);
}

/* Watching the queue */

#define REPORT_AFTER	"/sys/module/grant_unmap/parameters/report_after"

FIXTURE(queue)
{
	struct xen_env env;
	grant_ref_t *ref;
	struct pending pending;
	long report_after;
	char instance[64];
	int trace;
	int pipe[2];
	int other[2];
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(queue)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access(GRANT_UNMAP "pending", R_OK))
		SKIP(return, "no " GRANT_UNMAP);
	self->ref = self->env.grants.ref;
	self->report_after = read_number(REPORT_AFTER);
	self->trace = -1;
	ASSERT_EQ(0, pipe(self->pipe));
	ASSERT_EQ(0, pipe(self->other));
	ASSERT_EQ(0, pending_count());
}

FIXTURE_TEARDOWN(queue)
{
	if (self->report_after >= 0)
		write_number(REPORT_AFTER, self->report_after);
	close(self->trace);
	if (self->instance[0])
		rmdir(self->instance);
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->other[0]);
	close(self->other[1]);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(queue, pages_of_two_maps_are_listed)
{
	struct pending *p = &self->pending;
	char *first, *second;

	first = gntdev_map(self->env.gntdev, self->ref, 4, RW);
	second = gntdev_map(self->env.gntdev, self->ref + 4, 4, RW);
	ASSERT_NE(MAP_FAILED, first);
	ASSERT_NE(MAP_FAILED, second);
	ASSERT_TRUE(hold(self->pipe, page(first, 1), 2));
	ASSERT_TRUE(hold(self->other, page(second, 3), 1));
	ASSERT_EQ(0, munmap(second, 4 * PAGE_SIZE));
	ASSERT_EQ(0, munmap(first, 4 * PAGE_SIZE));

	ASSERT_TRUE(pending_read(p));
	EXPECT_EQ(3, p->count);
	EXPECT_NE(NULL, pending_find(p, getpid(), self->ref[1]));
	EXPECT_NE(NULL, pending_find(p, getpid(), self->ref[2]));
	EXPECT_NE(NULL, pending_find(p, getpid(), self->ref[7]));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(wait_for(pending_read(p) && p->count == 1));
	EXPECT_NE(NULL, pending_find(p, getpid(), self->ref[7]));
	EXPECT_FALSE(mapped(1));
	EXPECT_FALSE(mapped(2));
	EXPECT_TRUE(mapped(7));

	ASSERT_TRUE(drain(self->other, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 7));
	EXPECT_TRUE(wait_for(pending_count() == 0));
	EXPECT_FALSE(mapped(7));
}

TEST_F(queue, pages_of_two_processes_are_listed)
{
	struct pending *p = &self->pending;
	pid_t pid;
	int status;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 1, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 1));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(open_with_held_page(self->other, self->ref) < 0);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);

	ASSERT_TRUE(pending_read(p));
	EXPECT_EQ(2, p->count);
	EXPECT_NE(NULL, pending_find(p, getpid(), self->ref[0]));
	EXPECT_NE(NULL, pending_find(p, pid, self->ref[0]));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(wait_for(pending_read(p) && p->count == 1));
	EXPECT_NE(NULL, pending_find(p, pid, self->ref[0]));
	EXPECT_TRUE(mapped(0));
	ASSERT_TRUE(drain(self->other, self->copy));
	EXPECT_TRUE(wait_for(pending_count() == 0));
	EXPECT_FALSE(mapped(0));
}

/* Several mappings of all grants: their list takes more than one buffer. */
#define LISTED_MAPS	4
#define LISTED		(LISTED_MAPS * MAX_GRANTS)

/* How often the list, as far as it was read, has a page: 0, 1, or 2 for more than 1 */
static unsigned int times_listed(const char *list, unsigned long pfn)
{
	unsigned int times = 0;
	unsigned long listed;

	for (; list && times < 2; list = strchr(list, '\n')) {
		list += *list == '\n';
		if (sscanf(list, "%*u %*s %*u %*u %lx", &listed) == 1)
			times += listed == pfn;
	}
	return times;
}

/* Map all grants once more, put their pages into a pipe, and unmap them. */
static bool hold_all_grants(int gntdev, const grant_ref_t *ref, int *pipe_fds)
{
	void *mem = gntdev_map(gntdev, ref, MAX_GRANTS, RW);

	return mem != MAP_FAILED && !pipe(pipe_fds) &&
	       fcntl(pipe_fds[1], F_SETPIPE_SZ, MAX_GRANTS * PAGE_SIZE) > 0 &&
	       hold(pipe_fds, mem, MAX_GRANTS) && !munmap(mem, MAX_GRANTS * PAGE_SIZE);
}

TEST_F(queue, list_has_each_page_once_while_others_come_and_go)
{
	static char list[LISTED * 80];
	struct pending *p = &self->pending;
	int pipes[LISTED_MAPS + 1][2];
	unsigned int i, j, times[3] = {};
	size_t length, first_part;
	ssize_t part;
	int fd;

	for (i = 0; i < LISTED_MAPS; i++)
		ASSERT_TRUE(hold_all_grants(self->env.gntdev, self->ref, pipes[i]));
	ASSERT_EQ(LISTED, pending_count());

	fd = open(GRANT_UNMAP "pending", O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	part = read(fd, list, PAGE_SIZE);
	ASSERT_LT(0, part);
	first_part = part;
	length = first_part;

	/* Half of the pages of each mapping go, and another mapping comes. */
	for (i = 0; i < LISTED_MAPS; i++)
		for (j = 0; j < MAX_GRANTS / 2; j++)
			ASSERT_TRUE(drain(pipes[i], self->copy));
	ASSERT_TRUE(wait_for(pending_count() == LISTED / 2));
	ASSERT_TRUE(pending_read(p));
	ASSERT_TRUE(hold_all_grants(self->env.gntdev, self->ref, pipes[LISTED_MAPS]));

	while ((part = read(fd, list + length, PAGE_SIZE)) > 0) {
		length += part;
		ASSERT_LT(length + PAGE_SIZE, sizeof(list));
	}
	close(fd);
	EXPECT_EQ(0, part);
	EXPECT_LT(first_part, length);
	/* These pages were in the queue all the time. */
	for (i = 0; i < p->count; i++)
		times[times_listed(list, p->page[i].pfn)]++;
	EXPECT_EQ(0, times[0]);
	EXPECT_EQ(LISTED / 2, times[1]);
	EXPECT_EQ(0, times[2]);

	for (i = 0; i <= LISTED_MAPS; i++) {
		close(pipes[i][0]);
		close(pipes[i][1]);
	}
	EXPECT_TRUE(wait_for(pending_count() == 0));
}

TEST_F(queue, idle_pages_do_not_reach_it)
{
	__u64 before[NR_STATS], after[NR_STATS];
	unsigned int i;
	char *mem;

	ASSERT_TRUE(stats_read(before));
	for (i = 0; i < 20; i++) {
		mem = gntdev_map(self->env.gntdev, self->ref, MAX_GRANTS, RW);
		ASSERT_NE(MAP_FAILED, mem);
		ASSERT_EQ(0, munmap(mem, MAX_GRANTS * PAGE_SIZE));
	}
	ASSERT_TRUE(stats_read(after));
	EXPECT_EQ(0, memcmp(before, after, sizeof(before)));
}

TEST_F_TIMEOUT(queue, counters_grow_and_add_up, LONG_S)
{
	__u64 first[NR_STATS], s[NR_STATS];
	unsigned int i, pages = 0, held = 0;

	TH_LOG("XEN_SELFTEST_SEED=%u", seed());
	ASSERT_TRUE(stats_read(first));
	memcpy(s, first, sizeof(s));
	EXPECT_EQ(s[DEFERRED], s[UNMAPPED] + s[FAILED]);

	for (i = 0; i < 30 || held; i++) {
		unsigned int count = 1 + below(8);

		if (i < 30 && held + count <= 16) {
			char *mem = gntdev_map(self->env.gntdev, self->ref,
					       count, RW);

			ASSERT_NE(MAP_FAILED, mem);
			ASSERT_TRUE(hold(self->pipe, mem, count));
			ASSERT_EQ(0, munmap(mem, count * PAGE_SIZE));
			pages += count;
			held += count;
		} else {
			ASSERT_TRUE(drain(self->pipe, self->copy));
			held--;
		}
		/* When the queue is at rest, only pages that are held wait. */
		EXPECT_TRUE(wait_for(pending_count() == (int)held));
		ASSERT_TRUE(stats_grow(s));
		EXPECT_TRUE(wait_for(stats_grow(s) &&
				     s[DEFERRED] - s[UNMAPPED] - s[FAILED] ==
				     held));
	}

	EXPECT_EQ(first[DEFERRED] + pages, s[DEFERRED]);
	EXPECT_EQ(first[UNMAPPED] + pages, s[UNMAPPED]);
	EXPECT_EQ(first[FAILED], s[FAILED]);
	EXPECT_EQ(first[LEAKED], s[LEAKED]);
	EXPECT_LT(first[PASSES], s[PASSES]);
	EXPECT_LE(first[ATTEMPTS] + pages, s[ATTEMPTS]);
	EXPECT_LT(first[HYPERCALLS], s[HYPERCALLS]);
}

/* Trace the events of all CPUs in the order in which they happen. */
static int trace_open(char *instance, size_t size)
{
	char path[128];
	FILE *file;

	snprintf(instance, size, "/sys/kernel/tracing/instances/xen-%d",
		 getpid());
	if (mkdir(instance, 0700)) {
		instance[0] = 0;
		return -1;
	}
	snprintf(path, sizeof(path), "%s/trace_clock", instance);
	file = fopen(path, "w");
	if (!file)
		return -1;
	fputs("counter\n", file);
	if (fclose(file))
		return -1;
	snprintf(path, sizeof(path), "%s/events/xen_grant_unmap/enable",
		 instance);
	if (write_number(path, 1))
		return -1;
	snprintf(path, sizeof(path), "%s/trace_pipe", instance);
	return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

/* Wait for the next event, "name: arguments". */
static bool trace_next(int trace, char *event, size_t size)
{
	struct pollfd fd = { .fd = trace, .events = POLLIN };
	static char lines[PAGE_SIZE], *next = lines;
	char *end, *start;
	ssize_t len;

	while (!*next) {
		len = read(trace, lines, sizeof(lines) - 1);
		if (len <= 0 && poll(&fd, 1, WAIT_MS) != 1)
			return false;
		lines[len < 0 ? 0 : len] = 0;
		next = lines;
	}
	end = strchr(next, '\n');
	if (!end)
		return false;
	*end = 0;
	start = strstr(next, "grant_unmap_");
	snprintf(event, size, "%s", start ?: next);
	next = end + 1;
	return true;
}

/* Is the event a pass? If so, @left is how many pages are still in use. */
static bool event_pass(const char *event, unsigned int *left)
{
	return sscanf(event, "grant_unmap_pass: attempted=%*u unmapped=%*u left=%u",
		      left) == 1;
}

TEST_F(queue, events_tell_the_story)
{
	char event[128], expected[128];
	unsigned int pages, ms;
	char *mem;

	if (access("/sys/kernel/tracing/instances", W_OK))
		SKIP(return, "no /sys/kernel/tracing/instances");
	self->trace = trace_open(self->instance, sizeof(self->instance));
	ASSERT_LE(0, self->trace);

	mem = gntdev_map(self->env.gntdev, self->ref, 4, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, page(mem, 1), 2));
	ASSERT_EQ(0, munmap(mem, 4 * PAGE_SIZE));

	ASSERT_TRUE(trace_next(self->trace, event, sizeof(event)));
	snprintf(expected, sizeof(expected),
		 "grant_unmap_defer: owner=gntdev/%d pages=2 pending=2",
		 getpid());
	EXPECT_STREQ(expected, event);
	ASSERT_TRUE(trace_next(self->trace, event, sizeof(event)));
	EXPECT_STREQ("grant_unmap_pass: attempted=2 unmapped=0 left=2", event);

	ASSERT_TRUE(drain(self->pipe, self->copy));
	ASSERT_TRUE(drain(self->pipe, self->copy));
	do {
		ASSERT_TRUE(trace_next(self->trace, event, sizeof(event)));
	} while (event_pass(event, &pages));
	snprintf(expected, sizeof(expected),
		 "grant_unmap_done: owner=gntdev/%d pages=2 failed=0 waited_ms=%%u",
		 getpid());
	ASSERT_TRUE(sscanf(event, expected, &ms) == 1) {
		TH_LOG("%s", event);
	}
	EXPECT_GT(WAIT_MS, ms);

	ASSERT_TRUE(trace_next(self->trace, event, sizeof(event)));
	EXPECT_TRUE(event_pass(event, &pages)) {
		TH_LOG("%s", event);
	}
	EXPECT_EQ(0, pages);
}

/* Reports are a minute apart, and an earlier test may have had one. */
#define REPORT_MS	75000
#define QUIET_MS	3000

TEST_F_TIMEOUT(queue, page_held_for_long_is_reported_once, LONG_S)
{
	int kmsg = kmsg_open();
	char *mem;

	ASSERT_LE(0, kmsg);
	ASSERT_EQ(0, write_number(REPORT_AFTER, 1));
	mem = gntdev_map(self->env.gntdev, self->ref, 2, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, mem, 1));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));

	EXPECT_TRUE(kmsg_wait(kmsg, " 1 " IN_USE "1000 ms",
			      log_name(self->ref[0], getpid()), REPORT_MS));
	EXPECT_FALSE(kmsg_wait(kmsg, IN_USE, "", QUIET_MS));
	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(wait_for(!mapped(0)));
	close(kmsg);
}

/* The module */

#define MODULE	"xen_gntdev"

/* Whoever runs the tests may say where the module's file is. */
static const char *module_path(void)
{
	return getenv("XEN_SELFTEST_GNTDEV") ?: "/lib/modules/xen-gntdev.ko";
}

static bool module_loaded(void)
{
	return !access("/sys/module/" MODULE, F_OK);
}

static int module_unload(void)
{
	return syscall(__NR_delete_module, MODULE, O_NONBLOCK);
}

static int module_load(void)
{
	int fd = open(module_path(), O_RDONLY | O_CLOEXEC), err = -1;

	if (fd >= 0) {
		err = syscall(__NR_finit_module, fd, "", 0);
		close(fd);
	}
	return err;
}

/* The test sees another domain's grant table by the module. */
static void table_hide(struct grant_table *t)
{
	if (granter_address())
		grant_table_close(t);
}

static bool table_show(struct grant_table *t)
{
	return t->entry || !grant_table_open(t);
}

FIXTURE(module)
{
	struct xen_env env;
	grant_ref_t *ref;
	int pipe[2];
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(module)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	/* The module has a state only if it is not built in. */
	if (access("/sys/module/" MODULE "/initstate", F_OK))
		SKIP(return, "gntdev is built in");
	if (access(module_path(), R_OK))
		SKIP(return, "XEN_SELFTEST_GNTDEV: no %s", module_path());
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
	close(self->env.gntdev);
	self->env.gntdev = -1;
	grants_hide(&self->env.grants);
	table_hide(&self->env.table);
	if (!wait_for(!read_number("/sys/module/" MODULE "/refcnt")))
		SKIP(return, "another process has gntdev open");
	ASSERT_TRUE(table_show(&self->env.table));
}

/* Settle the page that waits first, then load the module, which later tests need. */
FIXTURE_TEARDOWN(module)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	if (module_loaded() && table_show(&self->env.table))
		EXPECT_TRUE(wait_for(!mapped(0)));
	if (!module_loaded())
		EXPECT_EQ(0, module_load());
	ASSERT_TRUE(table_show(&self->env.table));
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(module, stays_until_the_last_page_is_released)
{
	int fd = open_with_held_page(self->pipe, self->ref);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, close(fd));
	table_hide(&self->env.table);
	ASSERT_EQ(-1, module_unload());
	EXPECT_EQ(EWOULDBLOCK, errno);
	EXPECT_TRUE(module_loaded());
	ASSERT_TRUE(table_show(&self->env.table));
	EXPECT_TRUE(mapped(0));

	ASSERT_TRUE(drain(self->pipe, self->copy));
	EXPECT_TRUE(page_holds(self->copy, 0));
	EXPECT_TRUE(wait_for(!mapped(0)));
	table_hide(&self->env.table);
	EXPECT_TRUE(wait_for(!module_unload()));
	EXPECT_FALSE(module_loaded());

	ASSERT_EQ(0, module_load());
	fd = open("/dev/xen/gntdev", O_RDWR);
	EXPECT_LE(0, fd);
	close(fd);
}

/*
 * One thread drops the pages of a mapping one by one. Meanwhile another one takes
 * references to the same page, as fast as it can. It gets the page that was granted,
 * or nothing, and no grant stays mapped.
 *
 * There are two places to map at, used in turn. A place is used again only when the
 * reader has gone to the other one, so it is known which page is at an address.
 */
#define NR_ROUNDS	512
#define RACE_S		1200	/* for a million rounds */
#define NR_READS	64

struct place {
	char *mem;
	unsigned int first;	/* the grant of its first page */
	unsigned int next;	/* the page to be dropped next */
};

struct race {
	pthread_t thread;
	struct place place[2];
	unsigned int pages;	/* of a mapping */
	unsigned int turn;	/* 0: the thread is to end */
	unsigned int seen;
	unsigned int raced;	/* calls that a drop put an end to */
	unsigned int wrong;
};

/*
 * Read the words of a page one by one. Each read takes a reference. To be there in
 * time, read the page after the one that is being dropped now.
 */
static void race_read(struct race *r, const struct place *place)
{
	unsigned int next = __atomic_load_n(&place->next, __ATOMIC_RELAXED) + 1;
	__u32 stamp = (place->first + next) % MAX_GRANTS;
	__u32 *from = page(place->mem, next);
	__u32 words[PAGE_SIZE / sizeof(__u32)], right[ARRAY_SIZE(words)];
	struct iovec local = { words, NR_READS * sizeof(words[0]) };
	struct iovec remote[NR_READS];
	ssize_t len;
	int i;

	if (next == MAX_GRANTS)
		return;
	for (i = 0; i < NR_READS; i++)
		remote[i] = (struct iovec){ from + i, sizeof(*from) };
	fill_page(right, stamp);
	len = process_vm_readv(getpid(), &local, 1, remote, NR_READS, 0);
	if (len > 0 && memcmp(words, right, len))
		r->wrong++;
	if (len > 0 && len < (ssize_t)local.iov_len)
		r->raced++;
}

static void *race_reader(void *data)
{
	struct race *r = data;
	unsigned int turn;

	while ((turn = __atomic_load_n(&r->turn, __ATOMIC_ACQUIRE))) {
		__atomic_store_n(&r->seen, turn, __ATOMIC_RELEASE);
		race_read(r, &r->place[turn % 2]);
	}
	return NULL;
}

/* Map all grants, each time in another order, and send the reader there. */
static bool race_map(struct race *r, int gntdev, const grant_ref_t *ref)
{
	unsigned int i, turn = r->turn + 1;
	struct place *place = &r->place[turn % 2];
	grant_ref_t shifted[MAX_GRANTS];
	__s64 index;

	while (turn > 2 &&
	       __atomic_load_n(&r->seen, __ATOMIC_ACQUIRE) < turn - 1)
		sched_yield();

	place->first = turn;
	place->next = 0;
	for (i = 0; i < MAX_GRANTS; i++)
		shifted[i] = ref[(place->first + i) % MAX_GRANTS];
	for (i = 0; i < MAX_GRANTS; i += r->pages) {
		index = gntdev_add(gntdev, granter_domid(), shifted + i, r->pages);
		if (mmap(page(place->mem, i), r->pages * PAGE_SIZE, RW,
			 MAP_SHARED | MAP_FIXED, gntdev, index) == MAP_FAILED ||
		    gntdev_remove(gntdev, index, r->pages))
			return false;
	}
	__atomic_store_n(&r->turn, turn, __ATOMIC_RELEASE);
	return true;
}

static void *reserve(void *at)
{
	return mmap(at, MAX_GRANTS * PAGE_SIZE, PROT_NONE, MAP_PRIVATE |
		    MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), -1,
		    0);
}

static bool race_drop(struct race *r, bool unmap)
{
	struct place *place = &r->place[r->turn % 2];
	unsigned int i;

	for (i = 0; i < MAX_GRANTS; i++) {
		void *mem = page(place->mem, i);

		__atomic_store_n(&place->next, i, __ATOMIC_RELAXED);
		if (unmap ? munmap(mem, PAGE_SIZE) :
			    madvise(mem, PAGE_SIZE, MADV_DONTNEED))
			return false;
	}
	return reserve(place->mem) == place->mem;
}

static bool race_is_met(const struct race *r)
{
	return __atomic_load_n(&r->raced, __ATOMIC_RELAXED);
}

FIXTURE(race)
{
	struct xen_env env;
	struct race race;
};

FIXTURE_SETUP(race)
{
	struct iovec iov = { self, sizeof(*self) };

	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (process_vm_readv(getpid(), &iov, 1, &iov, 1, 0) < 0)
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "there is one CPU only");
	self->race.place[0].mem = reserve(NULL);
	self->race.place[1].mem = reserve(NULL);
	ASSERT_NE(MAP_FAILED, self->race.place[0].mem);
	ASSERT_NE(MAP_FAILED, self->race.place[1].mem);
}

FIXTURE_TEARDOWN(race)
{
	xen_env_teardown(_metadata, &self->env);
}

static void run_race(struct __test_metadata *_metadata, struct race *r,
		     const struct xen_env *env, unsigned int pages, bool unmap)
{
	unsigned long i, rounds = number_from_env("XEN_SELFTEST_ROUNDS",
						  NR_ROUNDS);
	const grant_ref_t *ref = env->grants.ref;
	__u64 begin = now_ms();

	r->pages = pages;
	ASSERT_TRUE(race_map(r, env->gntdev, ref));
	ASSERT_EQ(0, pthread_create(&r->thread, NULL, race_reader, r));
	/* More of them where the reader was not there yet. */
	for (i = MAX_GRANTS; i < rounds ||
	     (!race_is_met(r) && now_ms() < begin + WAIT_MS); i += MAX_GRANTS) {
		ASSERT_TRUE(race_drop(r, unmap));
		ASSERT_TRUE(race_map(r, env->gntdev, ref));
	}
	ASSERT_TRUE(race_drop(r, unmap));
	__atomic_store_n(&r->turn, 0, __ATOMIC_RELEASE);
	ASSERT_EQ(0, pthread_join(r->thread, NULL));

	TH_LOG("%lu rounds in %llu ms, the reader was there in %u", i,
	       now_ms() - begin, r->raced);
	EXPECT_EQ(0, r->wrong);
	EXPECT_LT(0, r->raced);
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(wait_for(!grant_mapped(&env->table, ref[i])));
}

TEST_F_TIMEOUT(race, gup_races_with_madvise, RACE_S)
{
	run_race(_metadata, &self->race, &self->env, MAX_GRANTS, false);
}

TEST_F_TIMEOUT(race, gup_races_with_munmap, RACE_S)
{
	run_race(_metadata, &self->race, &self->env, MAX_GRANTS, true);
}

/*
 * One hypercall may unmap the idle pages of a whole mapping, together with the user
 * PTEs, but not while anybody can look the pages up by these.
 */
TEST_F_TIMEOUT(race, gup_races_with_madvise_of_whole_mappings, RACE_S)
{
	run_race(_metadata, &self->race, &self->env, 1, false);
}

TEST_F_TIMEOUT(race, gup_races_with_munmap_of_whole_mappings, RACE_S)
{
	run_race(_metadata, &self->race, &self->env, 1, true);
}

/* No memory */

#define DEBUGFS		"/sys/kernel/debug/"

static const struct {
	const char *path;
	long value;
} fault_knobs[] = {
	{ DEBUGFS "failslab/task-filter", 1 },
	{ DEBUGFS "failslab/ignore-gfp-wait", 0 },
	{ DEBUGFS "failslab/verbose", 0 },
	{ DEBUGFS "failslab/interval", 1 },
	{ DEBUGFS "failslab/times", -1 },
	{ DEBUGFS "fail_page_alloc/task-filter", 1 },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", 0 },
	{ DEBUGFS "fail_page_alloc/verbose", 0 },
	{ DEBUGFS "fail_page_alloc/interval", 1 },
	{ DEBUGFS "fail_page_alloc/times", -1 },
	{ DEBUGFS "fail_page_alloc/min-order", 0 },
};

static int fault_probability(long percent)
{
	return write_number(DEBUGFS "failslab/probability", percent) |
	       write_number(DEBUGFS "fail_page_alloc/probability", percent);
}

FIXTURE(no_memory)
{
	struct xen_env env;
	grant_ref_t *ref;
	int make_it_fail;
	int pipe[2];
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(no_memory)
{
	unsigned int i;

	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access(DEBUGFS "failslab", F_OK))
		SKIP(return, "no " DEBUGFS "failslab");
	if (access(DEBUGFS "fail_page_alloc", F_OK))
		SKIP(return, "no " DEBUGFS "fail_page_alloc");
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
	self->make_it_fail = open("/proc/self/make-it-fail", O_RDWR);
	ASSERT_LE(0, self->make_it_fail);
	for (i = 0; i < ARRAY_SIZE(fault_knobs); i++)
		ASSERT_EQ(0, write_number(fault_knobs[i].path,
					  fault_knobs[i].value));
	ASSERT_EQ(0, fault_probability(100));
}

/* Have all allocations of this process fail if @none, else have none fail. */
static bool have_no_memory(int make_it_fail, bool none)
{
	return pwrite(make_it_fail, none ? "1" : "0", 1, 0) == 1;
}

FIXTURE_TEARDOWN(no_memory)
{
	have_no_memory(self->make_it_fail, false);
	fault_probability(0);
	close(self->make_it_fail);
	close(self->pipe[0]);
	close(self->pipe[1]);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(no_memory, pages_are_unmapped_all_the_same)
{
	struct ioctl_gntdev_map_grant_ref op = {
		.count = 1, .refs[0] = { .domid = granter_domid(), .ref = self->ref[0] },
	};
	int got_none, error, dropped;
	unsigned int i;
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 8, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(hold(self->pipe, page(mem, 5), 2));

	/* The ioctl fails, which shows that allocations do. */
	ASSERT_TRUE(have_no_memory(self->make_it_fail, true));
	got_none = ioctl(self->env.gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, &op);
	error = errno;
	dropped = madvise(mem, 8 * PAGE_SIZE, MADV_DONTNEED);
	ASSERT_TRUE(have_no_memory(self->make_it_fail, false));

	EXPECT_EQ(-1, got_none);
	EXPECT_EQ(ENOMEM, error);
	EXPECT_EQ(0, dropped);
	/* Elsewhere than on PV the grants stay until munmap(). */
	for (i = 0; i < 8; i++)
		EXPECT_EQ(translated() || i == 5 || i == 6, mapped(i));

	/* munmap() may fail for want of memory. Then do it again with memory. */
	ASSERT_TRUE(have_no_memory(self->make_it_fail, true));
	dropped = munmap(mem, 8 * PAGE_SIZE);
	ASSERT_TRUE(have_no_memory(self->make_it_fail, false));
	if (dropped)
		ASSERT_EQ(0, munmap(mem, 8 * PAGE_SIZE));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(i == 5 || i == 6, mapped(i));

	for (i = 5; i < 7; i++) {
		ASSERT_TRUE(drain(self->pipe, self->copy));
		EXPECT_TRUE(page_holds(self->copy, i));
		EXPECT_TRUE(wait_for(!mapped(i)));
	}
}

TEST_HARNESS_MAIN
