// SPDX-License-Identifier: GPL-2.0
/*
 * The figures of testbed/suites/bench, measured in a dom0 that maps its own grants or,
 * with XEN_SELFTEST_GRANTER, a guest's.
 * Prints a line "name value" for each; "-" for what this kernel does not count. With
 * "drain" it prints how many pages wait at each moment.
 *
 * Time is the machine's instructions: dom0 runs with --icount.
 */
#define _GNU_SOURCE
#include <err.h>
#include <sys/resource.h>

#include "xen_grant.h"
#include "../../../../mm/gup_test.h"

/* The domain that it runs in */
#define DOM0	0

#define RW		(PROT_READ | PROT_WRITE)
#define PAGES		512
#define WARM_UP		5
#define ROUNDS		21	/* odd, for a median */

/* Each page is in use, each by another pipe than those of other requests. */
#define REQUESTS	1000
#define REQUEST_PAGES	10
/* As many have grants of their own, the others the same ones again. */
#define USED_REQUESTS	(PAGES / REQUEST_PAGES)
#define IDLE_S		10
/* Of Xen's public headers */
#define __HYPERVISOR_vcpu_op		24
#define VCPUOP_get_runstate_info	4
#define GONE_S		60
#define XEN_MEMORY	"/sys/devices/system/xen_memory/xen_memory0/"
#define STATS		"/sys/kernel/debug/xen/grant_unmap/stats"

static struct grants grants[PAGES / MAX_GRANTS];
static grant_ref_t refs[PAGES];
static struct grant_table table;
static int gntdev;

static __u64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* The kernel's tick would be in some rounds, and not in others. */
static void wait_for_tick(void)
{
	struct timespec before, ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &before);
	do
		clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	while (ts.tv_nsec == before.tv_nsec);
}

static unsigned int refs_mapped(void)
{
	unsigned int i, mapped = 0;

	for (i = 0; i < PAGES; i++)
		mapped += grant_mapped(&table, refs[i]);
	return mapped;
}

static void expect_mapped(unsigned int count)
{
	if (refs_mapped() != count)
		errx(1, "%u grants are mapped, not %u", refs_mapped(), count);
}

/*
 * Grants are mapped onto pages without memory. Have enough of them at all
 * times: the balloon driver would give them memory after each unmap and take
 * it away for the next map, at times within what is measured and at times not.
 */
static void give_memory_back(void)
{
	long target = read_number(XEN_MEMORY "info/current_kb") -
		      2 * REQUESTS * REQUEST_PAGES * (PAGE_SIZE / 1024);

	if (write_number(XEN_MEMORY "target_kb", target) ||
	    !wait_for(read_number(XEN_MEMORY "info/current_kb") == target))
		errx(1, "this domain's memory does not become %ld kB", target);
}

static void set_up(void)
{
	const char *missing = xen_missing();
	unsigned int i;

	if (missing)
		errx(1, "%s", missing);
	for (i = 0; i < PAGES / MAX_GRANTS; i++) {
		if (grants_open(&grants[i], MAX_GRANTS, DOM0, GNTALLOC_FLAG_WRITABLE))
			err(1, "cannot grant %u pages", PAGES);
		memcpy(refs + i * MAX_GRANTS, grants[i].ref, sizeof(grants[i].ref));
	}
	if (grant_table_open(&table))
		err(1, "cannot map the grant table");
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (gntdev < 0)
		err(1, "/dev/xen/gntdev");
	expect_mapped(0);
	give_memory_back();
	/* Not MCL_FUTURE: it would change what mmap() does. */
	if (mlockall(MCL_CURRENT))
		err(1, "mlockall");
}

/* Map and unmap idle pages */

static int compare(const void *a, const void *b)
{
	const __u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void print_median(const char *what, unsigned int count, __u64 *values)
{
	qsort(values, ROUNDS, sizeof(*values), compare);
	printf("%s_%u %llu\n", what, count, values[ROUNDS / 2]);
}

static void print_count(const char *name, long value)
{
	if (value < 0)
		printf("%s -\n", name);
	else
		printf("%s %ld\n", name, value);
}

/* The pages are written to while they are mapped. */
static void map_and_unmap(unsigned int count)
{
	static __u64 map[ROUNDS], unmap[ROUNDS], sum[ROUNDS];
	static struct {
		struct ioctl_gntdev_map_grant_ref op;
		struct ioctl_gntdev_grant_ref more[PAGES - 1];
	} request;
	struct ioctl_gntdev_map_grant_ref *op = &request.op;
	struct ioctl_gntdev_unmap_grant_ref done;
	__u64 begin, mapped, used, unmapped;
	size_t size = count * PAGE_SIZE;
	unsigned int i;
	char *mem;
	int round;

	op->count = count;
	for (i = 0; i < count; i++) {
		op->refs[i].domid = granter_domid();
		op->refs[i].ref = refs[i];
	}
	for (round = -WARM_UP; round < ROUNDS; round++) {
		wait_for_tick();
		begin = now();
		if (ioctl(gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, op))
			err(1, "cannot map %u grants", count);
		mem = mmap(NULL, size, RW, MAP_SHARED, gntdev, op->index);
		mapped = now();
		if (mem == MAP_FAILED)
			err(1, "mmap of %u grants", count);
		expect_mapped(count);
		for (i = 0; i < count; i++)
			mem[i * PAGE_SIZE] = i;
		done.index = op->index;
		done.count = count;

		used = now();
		if (munmap(mem, size) ||
		    ioctl(gntdev, IOCTL_GNTDEV_UNMAP_GRANT_REF, &done))
			err(1, "cannot unmap %u grants", count);
		unmapped = now();
		expect_mapped(0);
		if (round < 0)
			continue;
		map[round] = mapped - begin;
		unmap[round] = unmapped - used;
		sum[round] = map[round] + unmap[round];
	}
	print_median("map", count, map);
	print_median("unmap", count, unmap);
	print_median("sum", count, sum);
}

/* Look pages up: granted ones, and anonymous memory for comparison */

static void look_up(const char *what, char *mem, unsigned long command)
{
	static __u64 get[ROUNDS];
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC), round;

	if (gup < 0)
		err(1, "/sys/kernel/debug/gup_test");
	for (round = -WARM_UP; round < ROUNDS; round++) {
		struct gup_test test = {
			.addr = (uintptr_t)mem,
			.size = PAGES * PAGE_SIZE,
			.nr_pages_per_call = PAGES,
			.gup_flags = 1,	/* FOLL_WRITE */
		};

		wait_for_tick();
		if (ioctl(gup, command, &test) || test.size != PAGES * PAGE_SIZE)
			err(1, "cannot look up %u pages", PAGES);
		if (round >= 0)
			get[round] = test.get_delta_usec * 1000;
	}
	close(gup);
	print_median(what, PAGES, get);
}

/* A walk over normal PTEs: each is asked for its page by vm_normal_page(). */
static void walk(const char *what, char *mem)
{
	static __u64 cold[ROUNDS];
	int round;

	for (round = -WARM_UP; round < ROUNDS; round++) {
		__u64 begin;

		wait_for_tick();
		begin = now();
		if (madvise(mem, PAGES * PAGE_SIZE, MADV_COLD))
			err(1, "MADV_COLD");
		if (round >= 0)
			cold[round] = now() - begin;
	}
	print_median(what, PAGES, cold);
}

#define VMA_SLAB	"/sys/kernel/slab/vm_area_struct/"

static void pages(void)
{
	char *granted = gntdev_map(gntdev, refs, PAGES, RW);
	char *anonymous = mmap(NULL, PAGES * PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (granted == MAP_FAILED || anonymous == MAP_FAILED)
		err(1, "mmap");
	expect_mapped(PAGES);
	memset(anonymous, 1, PAGES * PAGE_SIZE);
	look_up("gup_granted", granted, GUP_FAST_BENCHMARK);
	look_up("pin_granted", granted, PIN_FAST_BENCHMARK);
	look_up("gup_anonymous", anonymous, GUP_FAST_BENCHMARK);
	look_up("pin_anonymous", anonymous, PIN_FAST_BENCHMARK);
	walk("walk_anonymous", anonymous);
	print_count("vma_size", read_number(VMA_SLAB "object_size"));
	print_count("vma_number", read_number(VMA_SLAB "objs_per_slab"));
}

/* The queue of pages in use */

/* -1 where the kernel has no such counter */
static long stat_of(const char *wanted)
{
	FILE *file = fopen(STATS, "r");
	char name[32];
	long value;

	if (!file)
		return -1;
	while (fscanf(file, "%31s %ld", name, &value) == 2) {
		if (!strcmp(name, wanted)) {
			fclose(file);
			return value;
		}
	}
	errx(1, "no %s in " STATS, wanted);
}

/* How long the one CPU has been idle, by Xen. The kernel's counters are too coarse. */
static __u64 idle_time(void)
{
	struct {
		int state;
		__u64 since;
		__u64 running, runnable, blocked, offline;
	} runstate = { };
	struct privcmd_hypercall call = {
		.op = __HYPERVISOR_vcpu_op,
		.arg = { VCPUOP_get_runstate_info, 0, (unsigned long)&runstate },
	};

	int privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);

	if (sysconf(_SC_NPROCESSORS_ONLN) != 1)
		errx(1, "more than one CPU");
	if (privcmd < 0 || ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, &call))
		err(1, "VCPUOP_get_runstate_info");
	close(privcmd);
	if (!runstate.running || !runstate.blocked)
		errx(1, "Xen does not say how long the CPU was idle");
	return runstate.blocked;
}

/* How long one CPU is not idle while nothing runs here */
static __u64 busy_time(void)
{
	__u64 idle = idle_time(), begin = now();

	sleep(IDLE_S);
	return now() - begin - (idle_time() - idle);
}

static int pipes[REQUESTS][2];
static struct iovec iov[REQUESTS];
static __s64 index_of[REQUESTS];

/* Maps the pages of all requests, and holds each request's in a pipe. */
static void map_and_hold(void)
{
	struct rlimit files = { 2 * REQUESTS + 64, 2 * REQUESTS + 64 };
	const size_t size = REQUEST_PAGES * PAGE_SIZE;
	unsigned int i;

	if (setrlimit(RLIMIT_NOFILE, &files))
		err(1, "setrlimit");
	for (i = 0; i < REQUESTS; i++) {
		/* Xen lets a grant be mapped 127 times, not a thousand. */
		grant_ref_t *ref = refs + i % USED_REQUESTS * REQUEST_PAGES;

		index_of[i] = gntdev_add(gntdev, granter_domid(), ref, REQUEST_PAGES);
		if (index_of[i] < 0)
			err(1, "cannot map grants, request %u", i);
		iov[i].iov_len = size;
		iov[i].iov_base = mmap(NULL, size, RW, MAP_SHARED, gntdev, index_of[i]);
		if (iov[i].iov_base == MAP_FAILED)
			err(1, "mmap of request %u", i);
		if (pipe(pipes[i]) || vmsplice(pipes[i][1], iov + i, 1, 0) != (ssize_t)size)
			err(1, "cannot hold request %u in a pipe", i);
	}
	expect_mapped(USED_REQUESTS * REQUEST_PAGES);
}

static void unmap_all(void)
{
	unsigned int i;

	for (i = 0; i < REQUESTS; i++)
		if (munmap(iov[i].iov_base, REQUEST_PAGES * PAGE_SIZE) ||
		    gntdev_remove(gntdev, index_of[i], REQUEST_PAGES))
			err(1, "cannot unmap request %u", i);
}

static void release(unsigned int request)
{
	close(pipes[request][0]);
	close(pipes[request][1]);
}

static void expect_deferred(long before)
{
	long deferred = stat_of("deferred") - before;

	if (deferred != REQUESTS * REQUEST_PAGES)
		errx(1, "the queue took %ld pages, not %u", deferred, REQUESTS * REQUEST_PAGES);
}

static void queue(void)
{
	long deferred = stat_of("deferred"), passes, attempts, hypercalls;
	__s64 without, with;
	unsigned int i;
	__u64 begin;

	map_and_hold();
	without = busy_time();

	unmap_all();
	passes = stat_of("passes");
	attempts = stat_of("attempts");
	with = busy_time();
	expect_mapped(USED_REQUESTS * REQUEST_PAGES);
	if (deferred >= 0) {
		expect_deferred(deferred);
		passes = stat_of("passes") - passes;
		if (!passes)
			errx(1, "the queue made no pass in %u s", IDLE_S);
		attempts = (stat_of("attempts") - attempts) / passes;
	}
	printf("queue_cpu %.4f\n", (with - without) / (IDLE_S * 1e7));
	print_count("queue_passes", passes);
	print_count("queue_attempts", attempts);

	hypercalls = stat_of("hypercalls");
	for (i = 0; i < REQUESTS; i++)
		release(i);
	begin = now();
	while (refs_mapped()) {
		if (now() - begin > GONE_S * 1000000000ULL)
			errx(1, "%u grants are still mapped after %u s", refs_mapped(), GONE_S);
		usleep(500);
	}
	printf("queue_gone %.1f\n", (now() - begin) / 1e6);
	/* The queue counts what it did once it has done it. */
	usleep(100000);
	if (hypercalls >= 0)
		hypercalls = stat_of("hypercalls") - hypercalls;
	print_count("queue_hypercalls", hypercalls);
}

/* The same pages, and how many of them wait at each moment */

/* Prints "drain_NAME MS HELD WAITING". */
static long sample(const char *name, __u64 begin, unsigned int held)
{
	long waiting = stat_of("deferred") - stat_of("unmapped") - stat_of("failed");

	printf("drain_%s %.1f %u %ld\n", name, (__s64)(now() - begin) / 1e6, held, waiting);
	return waiting;
}

/* Releases a request each US microseconds, or, with 0, all at once. */
static void drain_queue(const char *name, unsigned int us)
{
	long deferred = stat_of("deferred");
	unsigned int i;
	__u64 begin;

	if (deferred < 0) {
		printf("drain_%s -\n", name);
		return;
	}
	map_and_hold();
	unmap_all();
	sleep(IDLE_S);
	expect_deferred(deferred);
	begin = now();
	sample(name, begin, REQUESTS * REQUEST_PAGES);
	for (i = 0; i < REQUESTS; i++) {
		release(i);
		if (!us)
			continue;
		usleep(us);
		if (i % 5 == 4)
			sample(name, begin, (REQUESTS - i - 1) * REQUEST_PAGES);
	}
	while (sample(name, begin, 0)) {
		if (now() - begin > GONE_S * 1000000000ULL)
			errx(1, "pages still wait after %u s", GONE_S);
		usleep(1000);
	}
	expect_mapped(0);
}

int main(int argc, char **argv)
{
	unsigned int count;

	set_up();
	if (argc == 2 && !strcmp(argv[1], "map")) {
		map_and_unmap(1);
		map_and_unmap(32);
		map_and_unmap(PAGES);
	} else if (argc == 2 && !strcmp(argv[1], "sizes")) {
		for (count = 2; count < PAGES; count *= 2)
			if (count != 32)
				map_and_unmap(count);
	} else if (argc == 2 && !strcmp(argv[1], "pages")) {
		pages();
	} else if (argc == 2 && !strcmp(argv[1], "queue")) {
		queue();
	} else if (argc == 2 && !strcmp(argv[1], "drain")) {
		drain_queue("at_once", 0);
		drain_queue("one_by_one", 1000);
	} else {
		errx(1, "usage: bench map|sizes|pages|queue|drain");
	}
	return 0;
}
