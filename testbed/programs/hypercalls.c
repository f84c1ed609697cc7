// SPDX-License-Identifier: GPL-2.0
/*
 * Counts the hypercalls that it takes to map and to unmap granted pages: maps and
 * unmaps dom0's own grants while Xen's tracing tells which hypercalls there are.
 * Prints a line "PAGES HYPERCALLS" for mappings of 1, 32 and 512 pages.
 */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "xen_grant.h"

/* The domain that it runs in, which grants to itself */
#define DOM0	0

#define PAGES		512
#define TRACE		"/tmp/trace"
/*
 * So much is waited for: many thousand hypercalls. Most are the balloon's, which takes
 * pages for large mappings, and gives them back in between.
 */
#define TRACE_SIZE	(4 << 20)

/* Records of Xen's trace, see its public/trace.h. */
#define TRACE_CLASS	"0x0020f000"	/* TRC_PV_ENTRY */
#define HYPERCALL	0x0020100d	/* TRC_PV_HYPERCALL_V2 */
#define EVENT(head)	((head) & 0x0fffffff)
#define WORDS(head)	(((head) >> 28) & 7)
#define HAS_TIME(head)	((head) >> 31)
#define OP(word)	((word) & 0xfffff)
#define OP_GRANT_TABLE	20		/* its words: the command, how many operations */
#define CMD_MAP		0
#define CMD_UNMAP	1

static struct grants grants[PAGES / MAX_GRANTS];
static grant_ref_t refs[PAGES];

static pid_t start_tracing(void)
{
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid)
		return pid;
	/* What it says on its standard output is no result of ours. */
	dup2(STDERR_FILENO, STDOUT_FILENO);
	execlp("xentrace", "xentrace", "-D", "-e", TRACE_CLASS, TRACE, NULL);
	err(1, "xentrace");
}

static void map_and_unmap(int gntdev, unsigned int count)
{
	struct stat st;
	__s64 index;
	char *mem;

	do {
		index = gntdev_add(gntdev, DOM0, refs, count);
		mem = mmap(NULL, count * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, gntdev,
			   index);
		if (index < 0 || mem == MAP_FAILED)
			err(1, "cannot map %u grants", count);
		memset(mem, 1, count * PAGE_SIZE);
		if (munmap(mem, count * PAGE_SIZE) || gntdev_remove(gntdev, index, count))
			err(1, "cannot unmap %u grants", count);
	} while (stat(TRACE, &st) || st.st_size < TRACE_SIZE);
}

/* For a mapping: each page is mapped twice and unmapped twice, whoever does it. */
static double hypercalls_traced(unsigned int count)
{
	unsigned long calls = 0, operations = 0;
	__u32 command = CMD_UNMAP + 1, left = 0;
	FILE *file = fopen(TRACE, "r");
	__u32 head, word[7];
	__u64 time;

	if (!file)
		err(1, TRACE);
	while (fread(&head, sizeof(head), 1, file)) {
		if (HAS_TIME(head) && !fread(&time, sizeof(time), 1, file))
			break;
		if (fread(word, sizeof(*word), WORDS(head), file) < WORDS(head))
			break;
		if (EVENT(head) != HYPERCALL || OP(word[0]) != OP_GRANT_TABLE ||
		    (word[1] != CMD_MAP && word[1] != CMD_UNMAP))
			continue;
		/* Xen interrupts long ones, and enters them again with what is left. */
		if (word[1] != command || word[2] >= left) {
			calls++;
			operations += word[2];
		}
		command = word[1];
		left = word[2];
	}
	fclose(file);
	if (calls < 40)
		errx(1, "only %lu hypercalls were traced", calls);
	return 4.0 * count * calls / operations;
}

static void count_hypercalls(int gntdev, unsigned int count)
{
	pid_t tracer;
	int status;

	unlink(TRACE);
	tracer = start_tracing();
	map_and_unmap(gntdev, count);
	kill(tracer, SIGTERM);
	if (waitpid(tracer, &status, 0) != tracer || !WIFEXITED(status))
		errx(1, "xentrace ended with status %x", status);
	printf("%u %.2f\n", count, hypercalls_traced(count));
}

int main(void)
{
	const char *missing = xen_missing();
	unsigned int i;
	int gntdev;

	if (missing)
		errx(1, "%s", missing);
	for (i = 0; i < PAGES / MAX_GRANTS; i++) {
		if (grants_open(&grants[i], MAX_GRANTS, DOM0, GNTALLOC_FLAG_WRITABLE))
			err(1, "cannot grant %u pages", PAGES);
		memcpy(refs + i * MAX_GRANTS, grants[i].ref, sizeof(grants[i].ref));
	}
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (gntdev < 0)
		err(1, "/dev/xen/gntdev");

	count_hypercalls(gntdev, 1);
	count_hypercalls(gntdev, 32);
	count_hypercalls(gntdev, PAGES);
	return 0;
}
