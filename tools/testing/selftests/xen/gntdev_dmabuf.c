// SPDX-License-Identifier: GPL-2.0
/*
 * gntdev exports grants as a dma-buf, and grants the pages of a dma-buf. Exported
 * grants stay mapped until the last user of the dma-buf is gone, whatever goes before.
 */
#include <pthread.h>
#include <linux/udmabuf.h>
#include <sys/wait.h>

#include "xen_grant.h"

#define RW	(PROT_READ | PROT_WRITE)
#define PAGES	4

static int gntdev_open(void)
{
	return open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
}

/* Returns the dma-buf, or -1. */
static int dmabuf_export(int fd, const grant_ref_t *ref)
{
	struct ioctl_gntdev_dmabuf_exp_from_refs *op;
	int dmabuf = -1;

	op = calloc(1, sizeof(*op) + PAGES * sizeof(op->refs[0]));
	op->domid = granter_domid();
	op->count = PAGES;
	memcpy(op->refs, ref, PAGES * sizeof(op->refs[0]));
	if (!ioctl(fd, IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS, op))
		dmabuf = op->fd;
	free(op);
	return dmabuf;
}

static int dmabuf_wait(int fd, int dmabuf, unsigned int ms)
{
	struct ioctl_gntdev_dmabuf_exp_wait_released op = {
		.fd = dmabuf, .wait_to_ms = ms,
	};

	return ioctl(fd, IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED, &op);
}

/* Grant the pages of a dma-buf to a domain. */
static int dmabuf_import_for(domid_t domid, int fd, int dmabuf, grant_ref_t *ref)
{
	struct ioctl_gntdev_dmabuf_imp_to_refs *op;
	int err;

	op = calloc(1, sizeof(*op) + PAGES * sizeof(op->refs[0]));
	op->fd = dmabuf;
	op->domid = domid;
	op->count = PAGES;
	err = ioctl(fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS, op);
	memcpy(ref, op->refs, PAGES * sizeof(op->refs[0]));
	free(op);
	return err;
}

/* To the domain that has granted ours */
static int dmabuf_import(int fd, int dmabuf, grant_ref_t *ref)
{
	return dmabuf_import_for(granter_domid(), fd, dmabuf, ref);
}

/* @dmabuf is only a number here: the dma-buf itself may be closed. */
static int dmabuf_release(int fd, int dmabuf)
{
	struct ioctl_gntdev_dmabuf_imp_release op = { .fd = dmabuf };

	return ioctl(fd, IOCTL_GNTDEV_DMABUF_IMP_RELEASE, &op);
}

static unsigned int pages_mapped(const struct xen_env *env)
{
	unsigned int i, mapped = 0;

	for (i = 0; i < PAGES; i++)
		mapped += grant_mapped(&env->table, env->grants.ref[i]);
	return mapped;
}

FIXTURE(gntdev_dmabuf)
{
	struct xen_env env;
	grant_ref_t *ref;
	int fd;
	int dmabuf;
	int importer;	/* another file of gntdev */
	grant_ref_t imported[PAGES];
};

FIXTURE_SETUP(gntdev_dmabuf)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->fd = self->env.gntdev;
	self->ref = self->env.grants.ref;
	self->dmabuf = dmabuf_export(self->fd, self->ref);
	if (self->dmabuf < 0 && errno == ENOTTY)
		SKIP(return, "CONFIG_XEN_GNTDEV_DMABUF is off");
	ASSERT_LE(0, self->dmabuf);
	ASSERT_EQ(PAGES, pages_mapped(&self->env));
	self->importer = gntdev_open();
	ASSERT_LE(0, self->importer);
}

FIXTURE_TEARDOWN(gntdev_dmabuf)
{
	close(self->importer);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(gntdev_dmabuf, close_of_the_dmabuf_unmaps_its_grants)
{
	close(self->dmabuf);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, unmap_grant_ref_takes_nothing_from_the_dmabuf)
{
	/* It is the first map of this file. */
	EXPECT_EQ(0, gntdev_remove(self->fd, 0, PAGES));
	EXPECT_EQ(-1, gntdev_remove(self->fd, 0, PAGES));
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	EXPECT_EQ(0, dmabuf_import(self->importer, self->dmabuf, self->imported));
	EXPECT_EQ(0, dmabuf_release(self->importer, self->dmabuf));
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	close(self->dmabuf);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, close_of_gntdev_takes_nothing_from_the_dmabuf)
{
	int fd = gntdev_open(), dmabuf = dmabuf_export(fd, self->ref);

	ASSERT_LE(0, dmabuf);
	close(self->dmabuf);
	close(fd);
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	close(dmabuf);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, grants_in_two_dmabufs_stay_for_the_second)
{
	int second = dmabuf_export(self->fd, self->ref);

	ASSERT_LE(0, second);
	close(self->dmabuf);
	EXPECT_EQ(0, dmabuf_import(self->importer, second, self->imported));
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	EXPECT_EQ(0, dmabuf_release(self->importer, second));
	close(second);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, mmap_of_an_exported_map_shows_its_pages)
{
	char *mem = mmap(NULL, PAGES * PAGE_SIZE, RW, MAP_SHARED, self->fd, 0);

	if (!translated()) {
		/* On PV only the kernel has a mapping of these grants. */
		EXPECT_EQ(MAP_FAILED, mem);
		EXPECT_EQ(EINVAL, errno);
		EXPECT_EQ(PAGES, pages_mapped(&self->env));
		close(self->dmabuf);
		EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
		return;
	}
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(pages_shared(&self->env, mem, 0, PAGES));
	/* With the dma-buf the map goes from its file, and the grants stay for the mapping. */
	close(self->dmabuf);
	EXPECT_EQ(-1, gntdev_remove(self->fd, 0, PAGES));
	EXPECT_EQ(ENOENT, errno);
	EXPECT_TRUE(pages_shared(&self->env, mem, 0, PAGES));
	munmap(mem, PAGES * PAGE_SIZE);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, page_in_a_pipe_outlives_the_dmabuf)
{
	char *mem = mmap(NULL, PAGES * PAGE_SIZE, RW, MAP_SHARED, self->fd, 0);
	char copy[PAGE_SIZE];
	int pipe[2];

	if (!translated()) {
		close(self->dmabuf);
		SKIP(return, "PV: a process cannot map an exported page, and has none for a pipe");
	}
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, pipe2(pipe, O_CLOEXEC));
	ASSERT_TRUE(hold(pipe, page(mem, 1), 1));
	munmap(mem, PAGES * PAGE_SIZE);
	close(self->dmabuf);
	EXPECT_TRUE(grant_mapped(&self->env.table, self->ref[1]));
	/* What the granting side writes now is in the pipe. */
	fill_page(page(self->env.grants.mem, 1), 77);
	EXPECT_TRUE(drain(pipe, copy));
	EXPECT_TRUE(page_holds(copy, 77));
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
	fill_page(page(self->env.grants.mem, 1), 1);
	close(pipe[0]);
	close(pipe[1]);
}

TEST_F(gntdev_dmabuf, import_holds_the_dmabuf_until_it_is_released)
{
	ASSERT_EQ(0, dmabuf_import(self->importer, self->dmabuf, self->imported));
	close(self->dmabuf);
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	EXPECT_EQ(0, dmabuf_release(self->importer, self->dmabuf));
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, import_holds_the_dmabuf_until_its_file_is_closed)
{
	ASSERT_EQ(0, dmabuf_import(self->importer, self->dmabuf, self->imported));
	close(self->fd);
	close(self->dmabuf);
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	close(self->importer);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, import_grants_the_pages_until_it_is_released)
{
	struct grant_table own;
	unsigned int i;

	ASSERT_EQ(0, dmabuf_import(self->importer, self->dmabuf, self->imported));
	if (local_grant_table_open(&own)) {
		close(self->dmabuf);
		SKIP(return, "this domain's grant table cannot be mapped: no /dev/mem");
	}
	for (i = 0; i < PAGES; i++) {
		EXPECT_EQ(GTF_permit_access, grant_flags(&own, self->imported[i]));
		EXPECT_EQ(granter_domid(), own.entry[self->imported[i]].domid);
	}
	EXPECT_EQ(0, dmabuf_release(self->importer, self->dmabuf));
	for (i = 0; i < PAGES; i++)
		EXPECT_EQ(0, grant_flags(&own, self->imported[i]));
	munmap(own.entry, own.count * sizeof(*own.entry));
	close(self->dmabuf);
}

/* A dma-buf of this process's memory, or -1 */
static int udmabuf_create(int memfd)
{
	struct udmabuf_create op = {
		.memfd = memfd, .flags = UDMABUF_FLAGS_CLOEXEC, .size = PAGES * PAGE_SIZE,
	};
	int fd = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), dmabuf;

	if (fd < 0)
		return -1;
	dmabuf = ioctl(fd, UDMABUF_CREATE, &op);
	close(fd);
	return dmabuf;
}

/* The frame of a page where addresses are translated */
static __u64 frame_of(const void *mem)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	__u64 entry = 0;

	if (pread(fd, &entry, sizeof(entry), (uintptr_t)mem / PAGE_SIZE * sizeof(entry)) !=
	    sizeof(entry))
		entry = 0;
	close(fd);
	return entry & ((1ULL << 55) - 1);
}

/* Without an export, which older kernels refuse on PV */
FIXTURE(udmabuf)
{
	struct xen_env env;
	int fd;
	int mapper;	/* another file of gntdev */
	grant_ref_t imported[PAGES];
};

FIXTURE_SETUP(udmabuf)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->fd = self->env.gntdev;
	self->mapper = gntdev_open();
	ASSERT_LE(0, self->mapper);
}

FIXTURE_TEARDOWN(udmabuf)
{
	close(self->mapper);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(udmabuf, import_grants_the_pages_of_the_buffer)
{
	int memfd = memfd_create("buffer", MFD_CLOEXEC | MFD_ALLOW_SEALING), dmabuf;
	struct grant_table own;
	char *mem, *granted;
	unsigned int i;

	ASSERT_LE(0, memfd);
	ASSERT_EQ(0, ftruncate(memfd, PAGES * PAGE_SIZE));
	ASSERT_EQ(0, fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	mem = mmap(NULL, PAGES * PAGE_SIZE, RW, MAP_SHARED, memfd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < PAGES; i++)
		fill_page(page(mem, i), 40 + i);
	dmabuf = udmabuf_create(memfd);
	if (dmabuf < 0 && errno == ENOENT)
		SKIP(return, "CONFIG_UDMABUF is off");
	ASSERT_LE(0, dmabuf);

	if (translated()) {
		ASSERT_EQ(0, dmabuf_import(self->fd, dmabuf, self->imported));
		if (local_grant_table_open(&own))
			SKIP(return, "this domain's grant table cannot be mapped: no /dev/mem");
		for (i = 0; i < PAGES; i++)
			EXPECT_EQ(frame_of(page(mem, i)), own.entry[self->imported[i]].frame);
		munmap(own.entry, own.count * sizeof(*own.entry));
	} else {
		ASSERT_EQ(0, dmabuf_import_for(own_domid(), self->fd, dmabuf, self->imported));
		granted = gntdev_map_of(self->mapper, own_domid(), self->imported, PAGES, RW);
		ASSERT_NE(MAP_FAILED, granted);
		for (i = 0; i < PAGES; i++) {
			EXPECT_TRUE(page_holds(page(granted, i), 40 + i));
			fill_page(page(granted, i), 80 + i);
			EXPECT_TRUE(page_holds(page(mem, i), 80 + i));
		}
		munmap(granted, PAGES * PAGE_SIZE);
	}
	EXPECT_EQ(0, dmabuf_release(self->fd, dmabuf));
	close(dmabuf);
	munmap(mem, PAGES * PAGE_SIZE);
	close(memfd);
}

TEST_F(gntdev_dmabuf, killed_process_leaves_no_grant_mapped)
{
	char byte = 0;
	int ready[2], status;
	pid_t pid;

	close(self->dmabuf);
	ASSERT_TRUE(wait_for(!pages_mapped(&self->env)));
	ASSERT_EQ(0, pipe2(ready, O_CLOEXEC));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = gntdev_open(), importer = gntdev_open();
		int dmabuf = dmabuf_export(fd, self->ref);

		if (dmabuf < 0 || dmabuf_import(importer, dmabuf, self->imported) ||
		    write(ready[1], &byte, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	EXPECT_EQ(1, read(ready[0], &byte, 1));
	EXPECT_EQ(PAGES, pages_mapped(&self->env));
	kill(pid, SIGKILL);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
	close(ready[0]);
}

static char state_of(pid_t pid)
{
	char path[32], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	if (fscanf(file, "%*d %*s %c", &state) != 1)
		state = 0;
	fclose(file);
	return state;
}

TEST_F(gntdev_dmabuf, wait_ends_when_the_dmabuf_does)
{
	int status;
	pid_t pid;

	EXPECT_EQ(-1, dmabuf_wait(self->fd, self->dmabuf, 0));
	EXPECT_EQ(ETIMEDOUT, errno);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int number = self->dmabuf;

		close(self->dmabuf);
		_exit(dmabuf_wait(self->fd, number, WAIT_MS) ? errno : 0);
	}
	EXPECT_TRUE(wait_for(state_of(pid) == 'D'));
	close(self->dmabuf);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(-1, dmabuf_wait(self->fd, self->dmabuf, 0));
	EXPECT_EQ(ENOENT, errno);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_F(gntdev_dmabuf, export_of_a_bad_reference_maps_nothing)
{
	grant_ref_t ref[PAGES];

	close(self->dmabuf);
	ASSERT_TRUE(wait_for(!pages_mapped(&self->env)));
	memcpy(ref, self->ref, sizeof(ref));
	ref[PAGES - 2] = 0x7fffffff;
	EXPECT_EQ(-1, dmabuf_export(self->fd, ref));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

struct guess {
	int fd;
	bool stop;
};

static void *guess_index(void *data)
{
	const struct guess *guess = data;

	while (!__atomic_load_n(&guess->stop, __ATOMIC_RELAXED))
		gntdev_remove(guess->fd, 0, PAGES);
	return NULL;
}

/* UNMAP_GRANT_REF of any index may come at any time, while the export is made, too. */
TEST_F(gntdev_dmabuf, guessed_index_takes_nothing_from_exports)
{
	struct guess guess = { .fd = self->fd };
	pthread_t thread;
	unsigned int i;
	int dmabuf;

	close(self->dmabuf);
	ASSERT_EQ(0, pthread_create(&thread, NULL, guess_index, &guess));
	for (i = 0; i < 200; i++) {
		dmabuf = dmabuf_export(self->fd, self->ref);
		ASSERT_LE(0, dmabuf);
		ASSERT_EQ(PAGES, pages_mapped(&self->env));
		close(dmabuf);
	}
	__atomic_store_n(&guess.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	EXPECT_TRUE(wait_for(!pages_mapped(&self->env)));
}

TEST_HARNESS_MAIN
