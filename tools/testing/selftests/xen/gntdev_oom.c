// SPDX-License-Identifier: GPL-2.0
/*
 * The OOM killer takes a process that maps grants, shared and private, while a
 * pipe of another process holds some of their pages. These pages keep their data,
 * and all grants are unmapped in the end.
 *
 * The OOM reaper takes private memory away from a process that does not end. It
 * cannot take grants away: on PV unmapping them sleeps, and elsewhere it takes PTEs
 * only.
 */
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "xen_grant.h"
#include "direct_io.h"

#define RW		(PROT_READ | PROT_WRITE)
#define LONG_S		120

/* Of these grants the first half is mapped shared, the other half private. */
#define NR_PAGES	8
#define HALF		(NR_PAGES / 2)
/* The pages at the end of each half are held. */
#define NR_HELD		2
/* What the granting side writes once the process has gone */
#define REWRITTEN	100

FIXTURE(oom)
{
	struct xen_env env;
	grant_ref_t *ref;
	struct disk disk;
	struct dm_disk dm;
	int pipe[2];
	int kmsg;
	pid_t pid;
	char copy[PAGE_SIZE];
};

/* Can the process end, or does it have to wait for I/O first? */
FIXTURE_VARIANT(oom)
{
	bool waits;
};

FIXTURE_VARIANT_ADD(oom, ends) { .waits = false };
FIXTURE_VARIANT_ADD(oom, waits_for_io) { .waits = true };

#define mapped(i)	grant_mapped(&self->env.table, self->ref[i])
#define granted(i)	page(self->env.grants.mem, i)

static bool is_held(unsigned int i)
{
	return i % HALF >= HALF - NR_HELD;
}

FIXTURE_SETUP(oom)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access("/proc/sysrq-trigger", W_OK))
		SKIP(return, "no access to /proc/sysrq-trigger");
	if (variant->waits && access("/dev/loop-control", R_OK | W_OK))
		SKIP(return, "no access to /dev/loop-control");
	if (variant->waits && access("/dev/mapper/control", R_OK | W_OK))
		SKIP(return, "no access to /dev/mapper/control");
	self->ref = self->env.grants.ref;
	ASSERT_EQ(0, pipe(self->pipe));
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->kmsg);
	lseek(self->kmsg, 0, SEEK_END);
	if (variant->waits) {
		ASSERT_EQ(0, disk_open(&self->disk));
		ASSERT_EQ(0, dm_open(&self->dm, &self->disk));
		ASSERT_EQ(0, dm_suspend(&self->dm));
	}
}

FIXTURE_TEARDOWN(oom)
{
	dm_close(&self->dm);
	if (self->pid > 0) {
		kill(self->pid, SIGKILL);
		waitpid(self->pid, NULL, 0);
	}
	disk_close(&self->disk);
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->kmsg);
	xen_env_teardown(_metadata, &self->env);
}

/* The process to be killed. It stops when the pipe holds its pages. */
static void map_and_wait(const int *pipe, const grant_ref_t *ref, int disk)
{
	/* Not the open file that it shares with its parent */
	int fd = open("/dev/xen/gntdev", O_RDWR);
	size_t held = (HALF - NR_HELD) * PAGE_SIZE;
	aio_context_t ctx = 0;
	void *mem[2];

	mem[0] = gntdev_map(fd, ref, HALF, RW);
	mem[1] = mmap(NULL, HALF * PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd,
		      gntdev_add(fd, granter_domid(), ref + HALF, HALF));
	if (mem[0] == MAP_FAILED || mem[1] == MAP_FAILED ||
	    !hold(pipe, mem[0] + held, NR_HELD) ||
	    !hold(pipe, mem[1] + held, NR_HELD) ||
	    write_number("/proc/self/oom_score_adj", 1000))
		_exit(1);
	if (disk > 0 && aio_start(&ctx, disk, true, mem[1], PAGE_SIZE))
		_exit(2);
	raise(SIGSTOP);
	for (;;)
		pause();
}

/* As if there were no memory left */
static bool call_oom_killer(void)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
	bool ok = write(fd, "f", 1) == 1;

	close(fd);
	return ok;
}

/* Wait for the next line of the kernel's log that has @what in it. */
static bool kmsg_wait(int kmsg, const char *what)
{
	struct pollfd fd = { .fd = kmsg, .events = POLLIN };
	char line[1024];
	ssize_t len;

	for (;;) {
		len = read(kmsg, line, sizeof(line) - 1);
		if (len > 0) {
			line[len] = 0;
			if (strstr(line, what))
				return true;
		} else if (errno == EAGAIN) {
			if (poll(&fd, 1, LONG_S * 1000) != 1)
				return false;
		} else if (errno != EPIPE) {
			return false;
		}
	}
}

TEST_F_TIMEOUT(oom, killed_process_leaves_held_pages, LONG_S)
{
	char killed[64], reaper[64];
	int status;
	unsigned int i;

	self->pid = fork();
	ASSERT_LE(0, self->pid);
	if (!self->pid)
		map_and_wait(self->pipe, self->ref, self->dm.fd);
	ASSERT_EQ(self->pid, waitpid(self->pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));

	ASSERT_EQ(0, kill(self->pid, SIGCONT));
	ASSERT_TRUE(call_oom_killer());
	snprintf(killed, sizeof(killed), "Killed process %d ", self->pid);
	ASSERT_TRUE(kmsg_wait(self->kmsg, killed));
	if (variant->waits) {
		/* By then the OOM reaper has tried to take the private mapping away. */
		snprintf(reaper, sizeof(reaper), translated() ?
			 "oom_reaper: reaped process %d " :
			 "oom_reaper: unable to reap pid:%d ", self->pid);
		ASSERT_TRUE(kmsg_wait(self->kmsg, reaper));
		/* If unable, it shows where the process is, which has not ended yet. */
		if (!translated())
			ASSERT_TRUE(kmsg_wait(self->kmsg, "</TASK>"));
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_TRUE(mapped(i));
		EXPECT_EQ(0, waitpid(self->pid, &status, WNOHANG));
		ASSERT_EQ(0, dm_resume(&self->dm));
	}
	ASSERT_EQ(self->pid, waitpid(self->pid, &status, 0));
	self->pid = 0;
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	if (variant->waits) {
		ASSERT_EQ(PAGE_SIZE, pread(self->disk.memfd, self->copy,
					   PAGE_SIZE, 0));
		EXPECT_TRUE(page_holds(self->copy, HALF));
	}

	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_TRUE(is_held(i) ? mapped(i) : wait_for(!mapped(i)));
		fill_page(granted(i), REWRITTEN + i);
	}
	for (i = 0; i < NR_PAGES; i++) {
		if (!is_held(i))
			continue;
		ASSERT_TRUE(drain(self->pipe, self->copy));
		EXPECT_TRUE(page_holds(self->copy, REWRITTEN + i));
		EXPECT_TRUE(wait_for(!mapped(i)));
	}
}

TEST_HARNESS_MAIN
