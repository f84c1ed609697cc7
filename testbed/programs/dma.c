// SPDX-License-Identifier: GPL-2.0
/*
 * What testbed/suites/dma runs in dom0 of arm64:
 *
 *   dma DISK
 *
 * A guest grants pages. Direct I/O goes between them and DISK, which a device reads
 * and writes that is not coherent. So caches have to be maintained for each byte: by
 * dom0 in its own memory, and by the hypervisor in pages of others. What is done is
 * seen by probes in the kernel, and the pages' machine frames are those that the
 * hypervisor answered when they were mapped.
 *
 * Prints "NAME NUMBER" for each figure:
 *
 *   same_section	1 if dom0 has memory in the section of the guest's frames
 *   buffers		buffers that were written or read
 *   wrong		those whose data is wrong, on the disk or for the granting side
 *   incomplete		those with bytes whose caches were not maintained
 *   stray		those for which caches were maintained beside them, or in another way
 *			than they need
 *   long_segments	pieces of buffers that the disk was given as one, over a page's end
 *   for_device		calls of arch_sync_dma_for_device()
 *   for_cpu		calls of arch_sync_dma_for_cpu() that maintain caches
 *   outside		those of both that are not for dom0's memory
 *   flush		calls of GNTTABOP_cache_flush
 *   unaligned		those whose address is not that of a page
 *   refused		those that the hypervisor did not answer with 0
 */
#include <err.h>

#include "xen_grant.h"

#define RW		(PROT_READ | PROT_WRITE)
/* Pages of which those are taken whose frames are adjacent */
#define POOL		MAX_GRANTS
/* As many of the hypercall's operations can be seen at once. */
#define BATCH		16
#define MIN_RUN		4
#define ROUNDS		8
/* include/asm/sparsemem.h */
#define SECTION_SHIFT	(27 - 12)

/* Of enum dma_data_direction: nothing is maintained for the CPU after it. */
#define DMA_TO_DEVICE	1

#define TRACING		"/sys/kernel/tracing/"
#define GNTTABOP_cache_flush	12
#define GNTTAB_CACHE_CLEAN	1
#define GNTTAB_CACHE_INVAL	2
static const char *const PROBES[] = {
	"p:caches/for_device arch_sync_dma_for_device addr=%x0:x64 size=%x1:u64 dir=%x2:u32",
	"p:caches/for_cpu arch_sync_dma_for_cpu addr=%x0:x64 size=%x1:u64 dir=%x2:u32",
	"p:caches/segment xen_dma_sync_for_device addr=%x1:x64 size=%x2:u64 dir=%x3:u32",
	"p:caches/flush HYPERVISOR_grant_table_op addr=+0(%x1):x64 size=+10(%x1):u16 "
		"offset=+8(%x1):u16 op=+12(%x1):u32 arg=%x1:x64 cmd=%x0:u32",
	/* The hypervisor leaves x1 as it was. */
	"r:caches/answer HYPERVISOR_grant_table_op arg=%x1:x64 status=$retval:s64",
	"r:caches/mapped HYPERVISOR_grant_table_op ops=+0(%x1):x64[64]",
};

enum kind { FOR_DEVICE, FOR_CPU, SEGMENT, FLUSH, ANSWER, KINDS };
static const char *const KIND[KINDS] = { "for_device", "for_cpu", "segment", "flush", "answer" };

/* A call that was seen, with what its kind has */
struct call {
	enum kind kind;
	__u64 addr, size, dir, offset, op, arg;
	__s64 status;
};

static struct page {
	grant_ref_t ref;
	__u64 frame;
	char *seen;	/* by the granting side */
} pages[POOL];

/* A page of the mapping, and dom0's page frame that it has */
static struct slot {
	struct page *page;
	char *mem;
	__u64 pfn;
} slots[BATCH];

/* The slots whose frames and page frames are adjacent, in their order: buffers are there. */
static struct slot *run;
static unsigned int pages_of_run;

/* How many times the caches of a byte of the run were maintained */
static unsigned char touched[BATCH * PAGE_SIZE];
static bool elsewhere;

static struct range {
	__u64 start, end;
} memory[64];
static unsigned int memory_ranges;

static struct {
	unsigned long same_section, buffers, wrong, incomplete, stray, long_segments,
		 for_device, for_cpu, outside, flush, unaligned, refused;
} sum;

static int disk, gntdev;
static struct grants grants;
static struct grant_table table;
static char normal[BATCH * PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

/* Tracing */

static void put(const char *file, const char *text)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), TRACING "%s", file);
	fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		err(1, "%s: cannot write '%s'", path, text);
	close(fd);
}

static void enable(const char *event, const char *on)
{
	char file[64];

	snprintf(file, sizeof(file), "events/caches/%s/enable", event);
	put(file, on);
}

static void set_probes(void)
{
	char filter[32];
	unsigned int i;

	put("tracing_on", "0");
	for (i = 0; i < sizeof(PROBES) / sizeof(PROBES[0]); i++)
		put("kprobe_events", PROBES[i]);
	snprintf(filter, sizeof(filter), "cmd == %d", GNTTABOP_cache_flush);
	put("events/caches/flush/filter", filter);
}

static void trace_begin(void)
{
	close(open(TRACING "trace", O_WRONLY | O_TRUNC | O_CLOEXEC));
	put("tracing_on", "1");
}

/* Returns what was seen, until the next time. */
static const char *trace_end(void)
{
	static char text[4 << 20];
	unsigned long kept, written;
	size_t len = 0;
	ssize_t more;
	int fd;

	put("tracing_on", "0");
	fd = open(TRACING "trace", O_RDONLY | O_CLOEXEC);
	while ((more = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += more;
	close(fd);
	text[len] = 0;
	if (len == sizeof(text) - 1 ||
	    sscanf(strstr(text, "entries-in-buffer/entries-written: ") ?: "",
		   "%*s %lu/%lu", &kept, &written) != 2 || kept != written)
		errx(1, "not all calls were recorded");
	return text;
}

/* A probe does not see a call that is made while another probe is at work. */
static void check_that_none_was_missed(void)
{
	FILE *file = fopen(TRACING "kprobe_profile", "r");
	unsigned long hits, missed;
	unsigned int lines = 0;
	char name[64];

	for (; file && fscanf(file, "%63s %lu %lu", name, &hits, &missed) == 3; lines++)
		if (missed)
			errx(1, "%s: %lu calls were not seen", name, missed);
	if (lines != sizeof(PROBES) / sizeof(PROBES[0]))
		errx(1, "kprobe_profile has %u probes", lines);
	fclose(file);
}

static __u64 field(const char *line, const char *name)
{
	const char *end = strchrnul(line, '\n'), *at = strstr(line, name);

	if (!at || at > end)
		return 0;
	return strtoull(at + strlen(name), NULL, 0);
}

static bool parse(const char *line, struct call *call)
{
	const char *at;
	char name[32];

	at = strstr(line, ": ");
	if (!at || at > strchrnul(line, '\n') || sscanf(at, ": %31[a-z_]:", name) != 1)
		return false;
	for (call->kind = 0; call->kind < KINDS; call->kind++) {
		if (strcmp(name, KIND[call->kind]))
			continue;
		call->addr = field(at, " addr=");
		call->size = field(at, " size=");
		call->dir = field(at, " dir=");
		call->offset = field(at, " offset=");
		call->op = field(at, " op=");
		call->arg = field(at, " arg=");
		call->status = field(at, " status=");
		return true;
	}
	return false;
}

/* dom0's memory */

static void read_memory(void)
{
	FILE *file = fopen("/proc/iomem", "r");
	char line[256];
	struct range r;

	while (file && fgets(line, sizeof(line), file))
		if (line[0] != ' ' && strstr(line, " : System RAM") &&
		    sscanf(line, "%llx-%llx", &r.start, &r.end) == 2 && r.end &&
		    memory_ranges < sizeof(memory) / sizeof(memory[0]))
			memory[memory_ranges++] = r;
	if (!memory_ranges)
		errx(1, "/proc/iomem has no memory");
	fclose(file);
}

static bool in_memory(__u64 addr, __u64 size)
{
	unsigned int i;

	for (i = 0; i < memory_ranges; i++)
		if (addr >= memory[i].start && addr + size - 1 <= memory[i].end)
			return true;
	return false;
}

static bool memory_in_section_of(__u64 frame)
{
	const __u64 section = frame >> SECTION_SHIFT;
	unsigned int i;

	for (i = 0; i < memory_ranges; i++)
		if (section >= memory[i].start >> (12 + SECTION_SHIFT) &&
		    section <= memory[i].end >> (12 + SECTION_SHIFT))
			return true;
	return false;
}

static __u64 pfn_of(const void *mem)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	__u64 entry;

	if (pread(fd, &entry, sizeof(entry), (unsigned long)mem / PAGE_SIZE * sizeof(entry)) !=
	    sizeof(entry) || !(entry >> 63))
		errx(1, "no page at %p", mem);
	close(fd);
	return entry & ((1ULL << 55) - 1);
}

/* The pages */

/* Map the slots' pages. */
static void map(void)
{
	grant_ref_t ref[BATCH];
	unsigned int i;
	char *mem;

	for (i = 0; i < BATCH; i++)
		ref[i] = slots[i].page->ref;
	mem = gntdev_map(gntdev, ref, BATCH, RW);
	if (mem == MAP_FAILED)
		err(1, "cannot map %u pages", BATCH);
	for (i = 0; i < BATCH; i++) {
		slots[i].mem = mem + i * PAGE_SIZE;
		slots[i].pfn = pfn_of(slots[i].mem);
	}
}

static void unmap(void)
{
	unsigned int i;

	for (i = 0; i < BATCH; i++)
		munmap(slots[i].mem, PAGE_SIZE);
	for (i = 0; i < BATCH; i++)
		if (!wait_for(!grant_mapped(&table, slots[i].page->ref)))
			errx(1, "a page stays mapped");
}

/*
 * The hypervisor's answer to a mapping has the page's frame. An operation has four words:
 * the last one is the address, and of the others some have the reference, the domain
 * and the status. One hypercall has some of the operations, and what follows those is
 * something else. If the hypervisor is interrupted, it goes on with those that are left,
 * and x1 has only those afterwards. Returns whether all frames are known.
 */
static bool learn_frames(const char *text)
{
	__u64 word[4 * BATCH];
	unsigned int i, op;

	for (; (text = strstr(text, " ops={")); text++) {
		const char *at = text + strlen(" ops={");

		for (i = 0; i < 4 * BATCH; i++, at += *at == ',')
			word[i] = strtoull(at, (char **)&at, 0);
		for (op = 0; op < BATCH; op++)
			for (i = 0; i < BATCH; i++)
				if (word[4 * op + 1] >> 32 == slots[i].page->ref &&
				    (word[4 * op + 2] & 0xffffffff) == granter_domid())
					slots[i].page->frame = word[4 * op + 3] / PAGE_SIZE;
	}
	for (i = 0; i < BATCH; i++)
		if (!slots[i].page->frame)
			return false;
	return true;
}

static int by_frame(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	return x->frame < y->frame ? -1 : x->frame > y->frame;
}

static int by_pfn(const void *a, const void *b)
{
	const struct slot *x = a, *y = b;

	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

/* Have the slots a page each, the first of the pool from @first on. */
static void choose(unsigned int first)
{
	unsigned int i;

	for (i = 0; i < BATCH; i++)
		slots[i].page = pages + (first + i) % POOL;
}

static void learn_all_frames(void)
{
	unsigned int i, tries = 0;
	bool learnt;

	enable("mapped", "1");
	for (i = 0; i < POOL; i += learnt ? BATCH : 0) {
		choose(i);
		trace_begin();
		map();
		learnt = learn_frames(trace_end());
		unmap();
		if (!learnt && ++tries == 20)
			errx(1, "the hypervisor's answers were not seen");
	}
	enable("mapped", "0");
	qsort(pages, POOL, sizeof(pages[0]), by_frame);
}

/* The first page of the longest row of adjacent frames */
static unsigned int adjacent_frames(void)
{
	unsigned int i, n = 1, best = 0, longest = 0;

	for (i = 1; i <= POOL; i++, n++) {
		if (i < POOL && n < BATCH && pages[i].frame == pages[i - 1].frame + 1)
			continue;
		if (n > longest) {
			longest = n;
			best = i - n;
		}
		n = 0;
	}
	return best;
}

/* The longest row of slots with adjacent page frames, and @with_frames with adjacent frames, too */
static void find_run(bool with_frames)
{
	unsigned int i, n = 1;

	qsort(slots, BATCH, sizeof(slots[0]), by_pfn);
	pages_of_run = 0;
	for (i = 1; i <= BATCH; i++, n++) {
		if (i < BATCH && slots[i].pfn == slots[i - 1].pfn + 1 &&
		    (!with_frames || slots[i].page->frame == slots[i - 1].page->frame + 1))
			continue;
		if (n > pages_of_run) {
			pages_of_run = n;
			run = slots + i - n;
		}
		n = 0;
	}
}

static int by_mem(const void *a, const void *b)
{
	const struct slot *x = a, *y = b;

	return x->mem < y->mem ? -1 : x->mem > y->mem;
}

/*
 * A piece of a buffer goes over a page's end if the pages are adjacent both for the
 * machine and for dom0. Which page frames a mapping gets, in which order, is mostly the
 * same the next time, or the time after that: the balloon gives first what it got last.
 * So slots that had adjacent ones are given pages with adjacent frames, for two tries.
 */
static void get_run(void)
{
	unsigned int first = adjacent_frames(), try, i;

	choose(first);
	for (try = 0; try < 16; try++) {
		map();
		find_run(true);
		if (pages_of_run >= MIN_RUN)
			return;
		find_run(false);
		unmap();
		for (i = 0; i < BATCH && try % 2 == 0; i++)
			slots[(run - slots + i) % BATCH].page = pages + (first + i) % POOL;
		qsort(slots, BATCH, sizeof(slots[0]), by_mem);
	}
	errx(1, "no adjacent pages");
}

static void get_pages(void)
{
	unsigned int i;

	if (grants_open(&grants, POOL, own_domid(), GNTALLOC_FLAG_WRITABLE) ||
	    grant_table_open(&table))
		err(1, "no grants");
	for (i = 0; i < POOL; i++) {
		pages[i].ref = grants.ref[i];
		pages[i].seen = page(grants.mem, i);
	}
	learn_all_frames();
	get_run();
	fprintf(stderr, "# %u adjacent frames from 0x%llx on, mapped at 0x%llx\n", pages_of_run,
		run->page->frame, run->pfn);
}

/* What was done */

/* The caches of @size bytes at @offset of a page of the run */
static void touch(unsigned int i, __u64 offset, __u64 size)
{
	for (; size; size--)
		touched[i * PAGE_SIZE + offset++]++;
}

/* dom0 maintains the caches of its own addresses, which are the mapping's, too. */
static void saw_sync(const struct call *call)
{
	__u64 addr = call->addr, left = call->size, size;
	unsigned int i;

	if (call->kind == FOR_DEVICE)
		sum.for_device++;
	else
		sum.for_cpu++;
	if (!in_memory(addr, left)) {
		if (!sum.outside++)
			fprintf(stderr, "# %s: 0x%llx, %llu bytes, is not in dom0's memory\n",
				KIND[call->kind], addr, left);
		sum.long_segments += addr % PAGE_SIZE + left > PAGE_SIZE;
		elsewhere = true;
		return;
	}
	for (; left; left -= size, addr += size) {
		size = PAGE_SIZE - addr % PAGE_SIZE;
		size = size < left ? size : left;
		for (i = 0; i < pages_of_run; i++)
			if (addr / PAGE_SIZE == run[i].pfn)
				touch(i, addr % PAGE_SIZE, size);
	}
}

/* The hypervisor does it in the frame that has the address. */
static void saw_flush(const struct call *call, bool read)
{
	__u64 frame = call->addr / PAGE_SIZE - run->page->frame;

	sum.flush++;
	if (call->addr % PAGE_SIZE && !sum.unaligned++)
		fprintf(stderr, "# flush: 0x%llx is not a page's address\n", call->addr);
	if (call->op != (read ? GNTTAB_CACHE_INVAL : GNTTAB_CACHE_CLEAN) ||
	    frame >= pages_of_run || call->offset + call->size > PAGE_SIZE)
		elsewhere = true;
	else
		touch(frame, call->offset, call->size);
}

static void saw(const char *text, bool read)
{
	/* Those without an answer so far: an interrupt may make a call before it comes. */
	__u64 asked[8];
	unsigned int i, pending = 0;
	struct call call;

	memset(touched, 0, sizeof(touched));
	elsewhere = false;
	for (; *text; text = strchrnul(text, '\n'), text += *text == '\n') {
		if (!parse(text, &call))
			continue;
		switch (call.kind) {
		case FOR_CPU:
			if (call.dir == DMA_TO_DEVICE)
				break;
			/* fall through */
		case FOR_DEVICE:
			saw_sync(&call);
			break;
		case SEGMENT:
			sum.long_segments += call.addr % PAGE_SIZE + call.size > PAGE_SIZE;
			break;
		case FLUSH:
			if (pending == sizeof(asked) / sizeof(asked[0]))
				errx(1, "calls have no answer");
			asked[pending++] = call.arg;
			saw_flush(&call, read);
			break;
		case ANSWER:
			for (i = 0; i < pending && asked[i] != call.arg; i++)
				;
			if (i == pending)
				break;
			asked[i] = asked[--pending];
			sum.refused += !!call.status;
			break;
		default:
			break;
		}
	}
	sum.refused += pending;
}

/* Each byte once before the device has the buffer, and if that writes, once afterwards */
static void judge(size_t start, size_t len, bool read)
{
	const unsigned int times = read ? 2 : 1;
	bool complete = true, stray = elsewhere;
	size_t i;

	for (i = 0; i < pages_of_run * PAGE_SIZE; i++) {
		if (i < start || i >= start + len)
			stray |= touched[i];
		else
			complete &= touched[i] >= times;
	}
	sum.buffers++;
	if (!complete && !sum.incomplete++)
		fprintf(stderr, "# incomplete: %s of %zu bytes at %zu\n",
			read ? "read" : "write", len, start);
	if (stray && !sum.stray++)
		fprintf(stderr, "# stray: %s of %zu bytes at %zu\n",
			read ? "read" : "write", len, start);
}

/* I/O */

static void io(bool read, const struct iovec *iov, int n, ssize_t len)
{
	if ((read ? preadv(disk, iov, n, 1 << 20) : pwritev(disk, iov, n, 1 << 20)) != len)
		err(1, "%s of %zd bytes", read ? "read" : "write", len);
}

/* A buffer is that part of the run: dom0's page frames are adjacent, its addresses not. */
static void traced_io(bool read, size_t start, size_t len)
{
	struct iovec iov[BATCH];
	size_t at, size;
	int n = 0;

	for (at = start; at < start + len; at += size, n++) {
		size = PAGE_SIZE - at % PAGE_SIZE;
		size = size < start + len - at ? size : start + len - at;
		iov[n].iov_base = run[at / PAGE_SIZE].mem + at % PAGE_SIZE;
		iov[n].iov_len = size;
	}
	trace_begin();
	io(read, iov, n, len);
	saw(trace_end(), read);
	judge(start, len, read);
}

static void normal_io(bool read, size_t start, size_t len)
{
	const struct iovec iov = { .iov_base = normal + start, .iov_len = len };

	io(read, &iov, 1, len);
}

/* What each page of @normal has, as far as it is in the buffer */
static void fill_normal(__u32 stamp, size_t start, size_t len)
{
	static char whole[sizeof(normal)];
	unsigned int i;

	for (i = 0; i < pages_of_run; i++)
		fill_page(whole + i * PAGE_SIZE, stamp + i);
	memcpy(normal + start, whole + start, len);
}

/* Does the granting side find in its pages what @normal has? */
static bool granter_has_normal(void)
{
	unsigned int i;

	for (i = 0; i < pages_of_run; i++)
		if (memcmp(run[i].page->seen, normal + i * PAGE_SIZE, PAGE_SIZE))
			return false;
	return true;
}

static void try(size_t start, size_t len)
{
	static __u32 stamp;
	unsigned int i;

	/* What the granting side has in its pages is written. */
	stamp += 1000;
	for (i = 0; i < pages_of_run; i++)
		fill_page(run[i].page->seen, stamp + i);
	traced_io(false, start, len);
	fill_normal(stamp, 0, sizeof(normal));
	memset(normal + start, 0, len);
	normal_io(true, start, len);
	sum.wrong += !granter_has_normal();

	/* Something else is read into them, and what is beside the buffer stays. */
	fill_normal(stamp + 500, start, len);
	normal_io(false, start, len);
	traced_io(true, start, len);
	sum.wrong += !granter_has_normal();
}

int main(int argc, char **argv)
{
	unsigned int round;
	size_t all;

	if (argc != 2)
		errx(1, "usage: dma DISK");
	disk = open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (disk < 0 || gntdev < 0)
		err(1, "%s", disk < 0 ? argv[1] : "/dev/xen/gntdev");
	read_memory();
	set_probes();
	get_pages();
	all = pages_of_run * PAGE_SIZE;
	sum.same_section = memory_in_section_of(run->page->frame);
	enable("for_device", "1");
	enable("for_cpu", "1");
	enable("segment", "1");
	enable("flush", "1");
	enable("answer", "1");
	for (round = 0; round < ROUNDS; round++) {
		/* A page; pages; in a page; over one's end; over more; all but a beginning */
		try(0, PAGE_SIZE);
		try(PAGE_SIZE, 3 * PAGE_SIZE);
		try(512, 1024);
		try(3584, 1024);
		try(2048, 2 * PAGE_SIZE);
		try(PAGE_SIZE + 512, 2 * PAGE_SIZE + 1024);
		try(512, all - 512);
	}
	check_that_none_was_missed();
	unmap();
#define print(name) printf(#name " %lu\n", sum.name)
	print(same_section);
	print(buffers);
	print(wrong);
	print(incomplete);
	print(stray);
	print(long_segments);
	print(for_device);
	print(for_cpu);
	print(outside);
	print(flush);
	print(unaligned);
	print(refused);
	grants_close(&grants);
	grant_table_close(&table);
	return 0;
}
