// SPDX-License-Identifier: GPL-2.0
/*
 * grant-check [--really]: does the running kernel have the faults with granted pages that
 * this series ends? For any dom0, see grant-check.8; it needs nothing else of this
 * repository. Grants of the domain's own are mapped, so it has to be a PV domain, or
 * arm64's dom0.
 */
#define _GNU_SOURCE
#include <err.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "xen_grant.h"

#define RW		(PROT_READ | PROT_WRITE)
#define PAGES		8
#define QUEUE		"/sys/kernel/debug/xen/grant_unmap/stats"
#define TAINT		"/proc/sys/kernel/tainted"
/* A kernel that tries again to unmap a page has done so by then. */
#define LATER_US	500000

/* The exit status; --help has the same */
enum { FINE = 0, AFFECTED = 1, UNKNOWN = 2 };

static struct grants grants;
static int gntdev;

static char *map(int prot)
{
	char *mem = gntdev_map(gntdev, grants.ref, PAGES, prot);

	if (mem == MAP_FAILED)
		err(UNKNOWN, "cannot map grants");
	return mem;
}

/* What can be told without harm */

/* The kernel promises an error for an address that is not mapped. */
static bool offset_of_nothing(void)
{
	char *mem = map(RW);
	struct ioctl_gntdev_get_offset_for_vaddr op = { };
	bool answered;

	/* Nothing is mapped below the last page then, and another map above. */
	munmap(mem, (PAGES - 1) * PAGE_SIZE);
	op.vaddr = (uintptr_t)mem + (PAGES - 2) * PAGE_SIZE;
	answered = !ioctl(gntdev, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, &op);
	munmap(mem + (PAGES - 1) * PAGE_SIZE, PAGE_SIZE);
	return answered;
}

/* Grants that are mapped for reading only can never be written to. */
static bool read_only_becomes_writable(void)
{
	char *mem = map(PROT_READ);
	bool allowed = !mprotect(mem, PAGES * PAGE_SIZE, RW);

	munmap(mem, PAGES * PAGE_SIZE);
	return allowed;
}

/* Nothing of what restricts access takes a mapping away. */
static bool mprotect_unmaps(void)
{
	char *mem = map(RW);
	unsigned char in_core[PAGES];
	bool gone;

	memset(mem, 1, PAGES * PAGE_SIZE);
	mprotect(mem, PAGES * PAGE_SIZE, PROT_READ);
	/* This tells without a touch, after which a process might be gone. */
	gone = mincore(mem, PAGES * PAGE_SIZE, in_core) || !(in_core[1] & 1);
	munmap(mem, PAGES * PAGE_SIZE);
	return gone;
}

/* What may crash the kernel: in a process of its own, which may be killed */

/* The data of a page that is unmapped while a pipe has it is in the pipe. */
static bool pipe_loses_pages(void)
{
	char *mem = map(RW), copy[PAGE_SIZE];
	bool lost = false;
	int pipe[2], i;

	for (i = 0; i < PAGES; i++)
		fill_page(page(mem, i), i);
	if (pipe2(pipe, O_CLOEXEC) || !hold(pipe, mem, PAGES))
		err(UNKNOWN, "cannot hold pages in a pipe");
	munmap(mem, PAGES * PAGE_SIZE);
	usleep(LATER_US);
	for (i = 0; i < PAGES; i++)
		lost |= !drain(pipe, copy) || !page_holds(copy, i);
	usleep(LATER_US);
	return lost;
}

/* A second part is unmapped while the first one waits. */
static bool parts_overwrite_each_other(void)
{
	char *mem = map(RW);
	int pipe[2];

	if (pipe2(pipe, O_CLOEXEC) || !hold(pipe, mem, PAGES))
		err(UNKNOWN, "cannot hold pages in a pipe");
	munmap(mem, 2 * PAGE_SIZE);
	munmap(mem + 2 * PAGE_SIZE, (PAGES - 2) * PAGE_SIZE);
	close(pipe[0]);
	close(pipe[1]);
	usleep(LATER_US);
	return false;
}

static const struct check {
	const char *what;
	bool (*affected)(void);
	bool really;
} checks[] = {
	{ "the offset of a mapping is told for addresses without one", offset_of_nothing },
	{ "grants that are read-only can be made writable by mprotect()", read_only_becomes_writable },
	{ "mprotect() unmaps grants", mprotect_unmaps },
	{ "a page is lost when it is unmapped while a pipe has it", pipe_loses_pages, true },
	{ "a second munmap() while pages of the first are in use", parts_overwrite_each_other, true },
};

/* A warning of the kernel taints it. */
static int run(const struct check *check)
{
	long taint = read_number(TAINT);
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid)
		exit(check->affected() ? AFFECTED : FINE);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		err(UNKNOWN, "fork");
	if (!WIFEXITED(status) || read_number(TAINT) != taint)
		return AFFECTED;
	return WEXITSTATUS(status);
}

static void set_up(void)
{
	const char *missing = xen_missing();

	if (missing)
		errx(UNKNOWN, "%s", missing);
	if (grants_open(&grants, PAGES, own_domid(), GNTALLOC_FLAG_WRITABLE))
		err(UNKNOWN, "cannot grant pages");
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (gntdev < 0)
		err(UNKNOWN, "/dev/xen/gntdev");
}

int main(int argc, char **argv)
{
	static const char *const answer[] = { "not affected", "AFFECTED", "cannot tell" };
	bool really = argc == 2 && !strcmp(argv[1], "--really");
	struct utsname name;
	int worst = FINE, result;
	unsigned int i;

	if (argc > 1 && !really) {
		puts("usage: grant-check [--really]\n"
		     "Tells which faults with granted pages the running kernel has, and with\n"
		     "--really also those that may crash it.  0: none, 1: some, 2: no answer");
		return strcmp(argv[1], "--help") ? UNKNOWN : FINE;
	}
	set_up();
	uname(&name);
	printf("Linux %s, %s, %s\n", name.release, translated() ? "Xen translates addresses" : "PV",
	       access(QUEUE, R_OK) ? "no queue of grants to unmap, or no debugfs" :
				     "with a queue of grants to unmap");
	for (i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
		if (checks[i].really && !really) {
			printf("not tried     %s (--really; this may crash the kernel)\n", checks[i].what);
			continue;
		}
		result = run(checks + i);
		if (result == AFFECTED || worst == FINE)
			worst = result;
		printf("%-12s  %s\n", answer[result], checks[i].what);
	}
	return worst;
}
