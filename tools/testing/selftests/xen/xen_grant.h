/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The granting side is /dev/xen/gntalloc, the mapping side /dev/xen/gntdev.
 *
 * No second domain is needed where Xen lets a domain map its own grants. It does so
 * where the domain knows the machine's addresses: on PV, and in a direct-mapped
 * domain. With XEN_SELFTEST_GRANTER=ADDRESS, an IPv4 address, granter.c grants the
 * pages in another domain.
 *
 * Tests read from the grant table whether a grant is mapped. Xen sets GTF_reading
 * and GTF_writing there when the grant is mapped, and clears them when its last
 * mapping has gone. So no test relies on the code that it tests.
 */
#ifndef XEN_GRANT_H
#define XEN_GRANT_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <linux/types.h>

#include "../kselftest_harness.h"

/* The uapi header leaves these two to its user. */
typedef __u32 grant_ref_t;
typedef __u16 domid_t;
#define __user

#include <xen/gntalloc.h>
#include <xen/gntdev.h>

#define PAGE_SIZE	4096
#define MAX_GRANTS	64
#define DOMID_SELF	0x7ff0

/* xen/interface/grant_table.h, which is not exported */
#define GTF_permit_access	0x01
#define GTF_reading		0x08
#define GTF_writing		0x10
#define GNTCOPY_source_gref	0x01
#define GNTCOPY_dest_gref	0x02
#define GNTST_okay		0
#define GNTST_bad_domain	-2
#define GNTST_bad_gntref	-3

#define __HYPERVISOR_grant_table_op	20
#define GNTTABOP_setup_table		2
#define GNTTABOP_query_size		6
#define GNTTABOP_get_version		10

/* xen/interface/features.h, which is not exported */
#define XENFEAT_auto_translated_physmap	2
#define XENFEAT_dom0			11
#define XENFEAT_direct_mapped		17

/* One entry of a version 1 grant table */
struct grant_entry {
	__u16 flags;
	__u16 domid;
	__u32 frame;
};

#define MAX_TABLE_FRAMES	64

/* The granting domain's grant table */
struct grant_table {
	struct grant_entry *entry;
	unsigned int count;
	/* Of another domain's: the connection to the granter, and gntdev */
	int granter, gntdev;
};

/* Pages that are granted to this domain, or by it */
struct grants {
	/* Of gntalloc, or the connection to the granter */
	int fd;
	/* The gntdev by which this domain sees the granter's memory */
	int view;
	unsigned int count;
	__u64 index;
	grant_ref_t ref[MAX_GRANTS];
	char *mem;
};

/*
 * The state that a test must leave as it found it. A warning of the kernel taints
 * the kernel, and so fails the test that caused it.
 */
struct xen_state {
	unsigned int mapped;
	long free_kb;
	long taint;
};

/* What every test needs: page i of the grants is filled with stamp i. */
struct xen_env {
	struct grants grants;
	struct grant_table table;
	struct xen_state before;
	int gntdev;
};

static inline __u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/* Wait for a condition that raises no event, for a limited time. */
#define WAIT_MS	10000
#define wait_for(cond)						\
({								\
	__u64 __deadline = now_ms() + WAIT_MS;			\
	bool __ok;						\
								\
	while (!(__ok = (cond)) && now_ms() < __deadline)	\
		usleep(1000);					\
	__ok;							\
})

/* The page @i of a mapping, or of the granting side's memory */
static inline void *page(void *mem, unsigned int i)
{
	return mem + i * PAGE_SIZE;
}

static inline void fill_page(void *page, __u32 stamp)
{
	__u32 *word = page;
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*word); i++)
		word[i] = stamp * 0x9e3779b9 + i;
}

static inline bool page_holds(const void *page, __u32 stamp)
{
	const __u32 *word = page;
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*word); i++)
		if (word[i] != stamp * 0x9e3779b9 + i)
			return false;
	return true;
}

static inline unsigned int below(unsigned int limit)
{
	return random() % limit;
}

/* Returns -1 when there is no such number. */
static inline long read_number(const char *path)
{
	long number = -1;
	FILE *file = fopen(path, "r");

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &number) != 1)
		number = -1;
	fclose(file);
	return number;
}

static inline int write_number(const char *path, long number)
{
	FILE *file = fopen(path, "w");

	if (!file)
		return -1;
	fprintf(file, "%ld\n", number);
	return fclose(file);
}

/* This domain, and the one that grants to it */

#define XEN_FEATURES	"/sys/hypervisor/properties/features"

static inline bool xen_feature(unsigned int feature)
{
	static unsigned long features;
	FILE *file;

	/* A domain has some features at least. */
	if (!features) {
		file = fopen(XEN_FEATURES, "r");
		if (file && fscanf(file, "%lx", &features) != 1)
			features = 0;
		if (file)
			fclose(file);
	}
	return features & (1UL << feature);
}

/*
 * Does Xen translate this domain's addresses? Then its PTEs are normal ones. Grants
 * are mapped into its address space, and stay until the whole map is gone from
 * memory and from its open file.
 */
static inline bool translated(void)
{
	return xen_feature(XENFEAT_auto_translated_physmap);
}

static inline const char *granter_address(void)
{
	return getenv("XEN_SELFTEST_GRANTER");
}

/* Xenstore has the domid, in domains that the toolstack has made. Returns it, or -1. */
static inline int xenstore_domid(void)
{
	struct {
		__u32 type, req_id, tx_id, len;
	} head = { .type = 2 /* XS_READ */, .len = sizeof("domid") };
	int fd = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC), domid = -1;
	const size_t size = sizeof(head);
	char value[16] = "";

	if (fd >= 0 && write(fd, &head, size) == (ssize_t)size &&
	    write(fd, "domid", head.len) == (ssize_t)head.len &&
	    read(fd, &head, size) == (ssize_t)size && head.type == 2 &&
	    head.len < sizeof(value) &&
	    read(fd, value, head.len) == (ssize_t)head.len)
		domid = atoi(value);
	close(fd);
	return domid;
}

/* Returns this domain's number, or -1. */
static inline int own_domid(void)
{
	static int domid = -1;

	if (domid < 0)
		domid = xen_feature(XENFEAT_dom0) ? 0 : xenstore_domid();
	return domid;
}

/* The number of the granting domain, once grants_open() has found it out */
static int granter = -1;

static inline domid_t granter_domid(void)
{
	return granter < 0 ? own_domid() : granter;
}

/* Why grants cannot be tested here, or NULL if they can */
static inline const char *xen_missing(void)
{
	if (access("/dev/xen/gntdev", R_OK | W_OK))
		return "no access to /dev/xen/gntdev: not on Xen, or not root";
	if (access(XEN_FEATURES, R_OK))
		return "no " XEN_FEATURES;
	if (granter_address())
		return NULL;
	if (translated() && !xen_feature(XENFEAT_direct_mapped))
		return "a domain cannot map its own grants here: XEN_SELFTEST_GRANTER";
	if (access("/dev/xen/gntalloc", R_OK | W_OK))
		return "no access to /dev/xen/gntalloc";
	if (access("/dev/xen/privcmd", R_OK | W_OK))
		return "no access to /dev/xen/privcmd";
	return NULL;
}

/* The granting side, in this domain */

static inline int local_grants_open(struct grants *g, unsigned int count,
				    domid_t domid, __u16 flags)
{
	struct ioctl_gntalloc_alloc_gref *op;
	int err;

	memset(g, 0, sizeof(*g));
	g->fd = open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC);
	if (g->fd < 0)
		return -1;

	op = calloc(1, sizeof(*op) + count * sizeof(op->gref_ids[0]));
	op->domid = domid;
	op->flags = flags;
	op->count = count;
	err = ioctl(g->fd, IOCTL_GNTALLOC_ALLOC_GREF, op);
	if (!err) {
		g->count = count;
		g->index = op->index;
		memcpy(g->ref, op->gref_ids, count * sizeof(g->ref[0]));
	}
	free(op);
	if (err)
		return -1;

	g->mem = mmap(NULL, count * PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED, g->fd, g->index);
	return g->mem == MAP_FAILED ? -1 : 0;
}

/* A grant that is still mapped is revoked later, by a timer in the kernel. */
static inline void local_grants_close(struct grants *g)
{
	if (g->mem && g->mem != MAP_FAILED)
		munmap(g->mem, g->count * PAGE_SIZE);
	if (g->fd > 0)
		close(g->fd);
	memset(g, 0, sizeof(*g));
}

/* The grant table */

struct privcmd_hypercall {
	__u64 op;
	__u64 arg[5];
};

struct privcmd_mmapbatch_v2 {
	unsigned int num;
	domid_t dom;
	__u64 addr;
	const unsigned long *arr;
	int *err;
};

#define IOCTL_PRIVCMD_HYPERCALL \
	_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))
#define IOCTL_PRIVCMD_MMAPBATCH_V2 \
	_IOC(_IOC_NONE, 'P', 4, sizeof(struct privcmd_mmapbatch_v2))

static inline int grant_table_op(int privcmd, __u64 cmd, void *arg)
{
	struct privcmd_hypercall call = {
		.op = __HYPERVISOR_grant_table_op,
		.arg = { cmd, (unsigned long)arg, 1 },
	};

	return ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, &call);
}

/* Get the frames of this domain's own grant table. Returns how many there are, or -1. */
static inline int grant_table_frames(unsigned long *frames)
{
	struct {
		domid_t dom;
		__u32 version;
	} version = { .dom = DOMID_SELF };
	struct {
		domid_t dom;
		__u32 nr_frames;
		__u32 max_nr_frames;
		__s16 status;
	} size = { .dom = DOMID_SELF };
	struct {
		domid_t dom;
		__u32 nr_frames;
		__s16 status;
		unsigned long *frames;
	} setup = { .dom = DOMID_SELF, .frames = frames };
	int privcmd, count = -1;

	privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
	if (privcmd < 0)
		return -1;
	if (grant_table_op(privcmd, GNTTABOP_get_version, &version) ||
	    version.version != 1 ||
	    grant_table_op(privcmd, GNTTABOP_query_size, &size) ||
	    size.status || size.nr_frames > MAX_TABLE_FRAMES)
		goto out;

	setup.nr_frames = size.nr_frames;
	if (!grant_table_op(privcmd, GNTTABOP_setup_table, &setup) && !setup.status)
		count = size.nr_frames;
out:
	close(privcmd);
	return count;
}

/* On PV the frames are the machine's. */
static inline void *map_frames_pv(const unsigned long *frames, unsigned int count)
{
	int errors[MAX_TABLE_FRAMES] = { };
	struct privcmd_mmapbatch_v2 batch = {
		.num = count, .dom = DOMID_SELF, .arr = frames, .err = errors,
	};
	int privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
	void *mem;

	mem = mmap(NULL, count * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   privcmd, 0);
	batch.addr = (unsigned long)mem;
	if (mem != MAP_FAILED && ioctl(privcmd, IOCTL_PRIVCMD_MMAPBATCH_V2, &batch)) {
		munmap(mem, count * PAGE_SIZE);
		mem = MAP_FAILED;
	}
	close(privcmd);
	return mem;
}

/* Elsewhere the frames are in this domain's own memory, and privcmd refuses them. */
static inline void *map_frames_translated(const unsigned long *frames, unsigned int count)
{
	void *mem = mmap(NULL, count * PAGE_SIZE, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/dev/mem", O_RDWR | O_CLOEXEC);
	unsigned int i;

	for (i = 0; mem != MAP_FAILED && i < count; i++) {
		if (mmap(mem + i * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, frames[i] * PAGE_SIZE) == MAP_FAILED) {
			munmap(mem, count * PAGE_SIZE);
			mem = MAP_FAILED;
		}
	}
	close(fd);
	return mem;
}

/* Map this domain's own grant table. Grants made later may not be in it. */
static inline int local_grant_table_open(struct grant_table *t)
{
	unsigned long frames[MAX_TABLE_FRAMES] = { };
	int count = grant_table_frames(frames);
	void *mem;

	memset(t, 0, sizeof(*t));
	if (count <= 0)
		return -1;
	mem = translated() ? map_frames_translated(frames, count) :
			     map_frames_pv(frames, count);
	if (mem == MAP_FAILED)
		return -1;
	t->entry = mem;
	t->count = count * PAGE_SIZE / sizeof(*t->entry);
	return 0;
}

static inline __u16 grant_flags(const struct grant_table *t, grant_ref_t ref)
{
	return __atomic_load_n(&t->entry[ref].flags, __ATOMIC_RELAXED);
}

static inline bool grant_mapped(const struct grant_table *t, grant_ref_t ref)
{
	return grant_flags(t, ref) & (GTF_reading | GTF_writing);
}

/* How many of this domain's grants are mapped, by anybody */
static inline unsigned int grants_mapped(const struct grant_table *t)
{
	unsigned int ref, mapped = 0;

	for (ref = 0; ref < t->count; ref++)
		mapped += grant_mapped(t, ref);
	return mapped;
}

/* The mapping side */

/* Returns the offset to mmap(), or -1. */
static inline __s64 gntdev_add(int fd, domid_t domid, const grant_ref_t *ref,
			       unsigned int count)
{
	struct ioctl_gntdev_map_grant_ref *op;
	__s64 index = -1;
	unsigned int i;

	op = calloc(1, sizeof(*op) + count * sizeof(op->refs[0]));
	op->count = count;
	for (i = 0; i < count; i++) {
		op->refs[i].domid = domid;
		op->refs[i].ref = ref[i];
	}
	if (!ioctl(fd, IOCTL_GNTDEV_MAP_GRANT_REF, op))
		index = op->index;
	free(op);
	return index;
}

static inline int gntdev_remove(int fd, __u64 index, unsigned int count)
{
	struct ioctl_gntdev_unmap_grant_ref op = {
		.index = index, .count = count,
	};

	return ioctl(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &op);
}

/*
 * Have munmap() end the mapping at @mem. On PV it does so in any case. Elsewhere the
 * open file keeps the grants mapped, too, until it is told not to.
 */
static inline int gntdev_leave(int fd, void *mem)
{
	struct ioctl_gntdev_get_offset_for_vaddr op = { .vaddr = (unsigned long)mem };

	if (!translated())
		return 0;
	if (ioctl(fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, &op))
		return -1;
	return gntdev_remove(fd, op.offset, op.count);
}

/* End a mapping that the open file may still have. */
static inline int gntdev_unmap(int fd, void *mem, unsigned int count)
{
	return gntdev_leave(fd, mem) ?: munmap(mem, count * PAGE_SIZE);
}

/*
 * Map grants so that munmap() of all their pages ends the mapping. Returns MAP_FAILED
 * on failure, as mmap() does.
 */
static inline void *gntdev_map_of(int fd, domid_t domid, const grant_ref_t *ref,
				  unsigned int count, int prot)
{
	__s64 index = gntdev_add(fd, domid, ref, count);
	void *mem;

	if (index < 0)
		return MAP_FAILED;
	mem = mmap(NULL, count * PAGE_SIZE, prot, MAP_SHARED, fd, index);
	if (mem != MAP_FAILED && gntdev_leave(fd, mem)) {
		munmap(mem, count * PAGE_SIZE);
		mem = MAP_FAILED;
	}
	return mem;
}

static inline void *gntdev_map(int fd, const grant_ref_t *ref,
			       unsigned int count, int prot)
{
	return gntdev_map_of(fd, granter_domid(), ref, count, prot);
}

/* The granting side, here or in another domain: see granter.c */

#define GRANTER_PORT	7001

struct granter_request {
	/* 0: the grant table */
	__u32 count;
	domid_t domid;
	/* The one that sees the memory */
	domid_t viewer;
	__u16 flags;
	/* At the end of the grants clear a byte and send an event, if there is a port. */
	__u16 notify_byte;
	__u32 notify_port;
};

/* What the granter does with its memory, and answers with the same byte */
#define GRANTER_MUNMAP	'U'
#define GRANTER_CLOSE	'C'

/*
 * If @error is 0, @count references follow, unless they are the table's, and then
 * @count by which to see the memory.
 */
struct granter_answer {
	__s32 error;
	__u32 count;
	__u32 domid;
	/* What has failed */
	char step[36];
};

static inline int receive_all(int fd, void *data, size_t len)
{
	return len && recv(fd, data, len, MSG_WAITALL) != (ssize_t)len ? -1 : 0;
}

/* Returns the connection, which keeps the grants, or -1. */
static inline int granter_ask(const struct granter_request *request,
			      struct granter_answer *answer)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_port = htons(GRANTER_PORT),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!inet_aton(granter_address(), &addr.sin_addr) ||
	    connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    send(fd, request, sizeof(*request), MSG_NOSIGNAL) != sizeof(*request) ||
	    receive_all(fd, answer, sizeof(*answer))) {
		fprintf(stderr, "# no granter at %s: %s\n", granter_address(),
			strerror(errno));
		close(fd);
		return -1;
	}
	if (answer->error) {
		fprintf(stderr, "# the granter cannot do it: %s: %s\n", answer->step,
			strerror(answer->error));
		close(fd);
		errno = answer->error;
		return -1;
	}
	granter = answer->domid;
	return fd;
}

/* Have the granter end the grants of a connection, and wait until it has. */
static inline void granter_end(int fd)
{
	char byte;

	shutdown(fd, SHUT_WR);
	while (recv(fd, &byte, 1, 0) > 0)
		;
	close(fd);
}

/* See the granter's memory. */
static inline void *granter_view(int *gntdev, const grant_ref_t *ref, unsigned int count)
{
	*gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	return gntdev_map_of(*gntdev, granter, ref, count, PROT_READ | PROT_WRITE);
}

static inline int remote_grants_open(struct grants *g, const struct granter_request *request)
{
	const size_t size = request->count * sizeof(g->ref[0]);
	struct granter_answer answer;
	grant_ref_t view[MAX_GRANTS];

	memset(g, 0, sizeof(*g));
	g->fd = granter_ask(request, &answer);
	if (g->fd < 0)
		return -1;
	g->count = request->count;
	if (answer.count != g->count || receive_all(g->fd, g->ref, size) ||
	    receive_all(g->fd, view, size))
		return -1;
	g->mem = granter_view(&g->view, view, g->count);
	return g->mem == MAP_FAILED ? -1 : 0;
}

static inline int remote_grant_table_open(struct grant_table *t)
{
	const struct granter_request request = { .viewer = own_domid() };
	grant_ref_t view[MAX_TABLE_FRAMES];
	struct granter_answer answer;
	void *mem;

	memset(t, 0, sizeof(*t));
	t->granter = granter_ask(&request, &answer);
	if (t->granter < 0 || answer.count > MAX_TABLE_FRAMES ||
	    receive_all(t->granter, view, answer.count * sizeof(view[0])))
		return -1;
	mem = granter_view(&t->gntdev, view, answer.count);
	if (mem == MAP_FAILED)
		return -1;
	t->entry = mem;
	t->count = answer.count * PAGE_SIZE / sizeof(*t->entry);
	return 0;
}

/* Have @count pages granted to @domid. */
static inline int grants_open(struct grants *g, unsigned int count,
			      domid_t domid, __u16 flags)
{
	const struct granter_request request = {
		.count = count, .domid = domid, .viewer = own_domid(), .flags = flags,
	};

	return granter_address() ? remote_grants_open(g, &request) :
				   local_grants_open(g, count, domid, flags);
}

/* Stop to see the memory of another domain that grants it: this uses gntdev. */
static inline void grants_hide(struct grants *g)
{
	if (!granter_address())
		return;
	if (g->mem && g->mem != MAP_FAILED)
		munmap(g->mem, g->count * PAGE_SIZE);
	if (g->view > 0)
		close(g->view);
	g->mem = NULL;
	g->view = 0;
}

static inline void grants_close(struct grants *g)
{
	if (!granter_address()) {
		local_grants_close(g);
		return;
	}
	grants_hide(g);
	if (g->fd > 0)
		granter_end(g->fd);
	memset(g, 0, sizeof(*g));
}

static inline int grant_table_open(struct grant_table *t)
{
	return granter_address() ? remote_grant_table_open(t) :
				   local_grant_table_open(t);
}

static inline void grant_table_close(struct grant_table *t)
{
	if (t->entry)
		munmap(t->entry, t->count * sizeof(*t->entry));
	if (t->gntdev > 0)
		close(t->gntdev);
	if (t->granter > 0)
		granter_end(t->granter);
	memset(t, 0, sizeof(*t));
}

/* Holding pages */

/* Make the pipe hold the pages, by reference. */
static inline bool hold(const int *pipe, void *mem, unsigned int count)
{
	struct iovec iov = { .iov_base = mem, .iov_len = count * PAGE_SIZE };

	return vmsplice(pipe[1], &iov, 1, 0) == (ssize_t)iov.iov_len;
}

/* Take one page out of the pipe: it is no longer held. */
static inline bool drain(const int *pipe, void *copy)
{
	return read(pipe[0], copy, PAGE_SIZE) == PAGE_SIZE;
}

/*
 * The domain's pages, in the balloon or with memory, that are not in use to map
 * grants onto. Where pages for that do not come from the balloon
 * (CONFIG_XEN_UNPOPULATED_ALLOC), this never changes.
 */
static inline long free_pages_kb(void)
{
#define XEN_MEMORY_INFO "/sys/devices/system/xen_memory/xen_memory0/info/"
	return read_number(XEN_MEMORY_INFO "current_kb") +
	       read_number(XEN_MEMORY_INFO "low_kb") +
	       read_number(XEN_MEMORY_INFO "high_kb");
}

static inline void xen_state_get(struct xen_state *s,
				 const struct grant_table *t)
{
	s->mapped = grants_mapped(t);
	s->free_kb = free_pages_kb();
	s->taint = read_number("/proc/sys/kernel/tainted");
}

static inline void xen_env_setup(struct __test_metadata *_metadata,
				 struct xen_env *env)
{
	const char *missing = xen_missing();
	unsigned int i;

	if (missing)
		SKIP(return, "%s", missing);

	ASSERT_LE(0, own_domid());
	ASSERT_EQ(0, grants_open(&env->grants, MAX_GRANTS, own_domid(),
				 GNTALLOC_FLAG_WRITABLE));
	for (i = 0; i < MAX_GRANTS; i++)
		fill_page(env->grants.mem + i * PAGE_SIZE, i);

	ASSERT_EQ(0, grant_table_open(&env->table)) {
		TH_LOG("the grant table cannot be mapped: no /dev/mem?");
	}
	for (i = 0; i < MAX_GRANTS; i++) {
		ASSERT_LT(env->grants.ref[i], env->table.count);
		ASSERT_EQ(GTF_permit_access,
			  grant_flags(&env->table, env->grants.ref[i]));
	}

	env->gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, env->gntdev);
	xen_state_get(&env->before, &env->table);
}

static inline void xen_env_teardown(struct __test_metadata *_metadata,
				    struct xen_env *env)
{
	const struct xen_state *before = &env->before;

	close(env->gntdev);
	/* A test that failed half way has not cleaned up. */
	if (!_metadata->exit_code) {
		EXPECT_TRUE(wait_for(grants_mapped(&env->table) <=
				     before->mapped));
		EXPECT_TRUE(wait_for(free_pages_kb() >= before->free_kb));
		EXPECT_EQ(before->taint,
			  read_number("/proc/sys/kernel/tainted"));
	}
	grants_close(&env->grants);
	grant_table_close(&env->table);
}

/* The state of a mapping */

static sigjmp_buf access_fault;

static inline void on_fault(int sig)
{
	siglongjmp(access_fault, sig);
}

/* The signal that a read at @mem ends in, or 0. */
static inline int access_signal(const char *mem)
{
	struct sigaction action = { .sa_handler = on_fault }, bus, segv;
	int sig;

	sigaction(SIGBUS, &action, &bus);
	sigaction(SIGSEGV, &action, &segv);
	sig = sigsetjmp(access_fault, 1);
	if (!sig)
		__atomic_load_n(mem, __ATOMIC_SEQ_CST);
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGSEGV, &segv, NULL);
	return sig;
}

/* Are the pages mapped and shared with the granting side, both ways? */
static inline bool pages_shared(const struct xen_env *env, char *mem,
				unsigned int first, unsigned int count)
{
	bool good = true;
	unsigned int i;

	for (i = first; i < first + count; i++) {
		void *here = page(mem, i), *there = page(env->grants.mem, i);

		if (!grant_mapped(&env->table, env->grants.ref[i]) || access_signal(here))
			return false;
		good &= page_holds(here, i);
		fill_page(here, ~i);
		good &= page_holds(there, ~i);
		fill_page(there, i);
	}
	return good;
}

/* Does a port at @fd of evtchn get an event within @ms? If so, it can get another. */
static inline bool event_came(int fd, int ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	__u32 port;

	return poll(&poll_fd, 1, ms) == 1 &&
	       read(fd, &port, sizeof(port)) == sizeof(port) &&
	       write(fd, &port, sizeof(port)) == sizeof(port);
}

#endif /* XEN_GRANT_H */
