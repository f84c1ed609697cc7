// SPDX-License-Identifier: GPL-2.0
/*
 * Grants are mapped onto pages without memory. Where these come from the balloon
 * (not with CONFIG_XEN_UNPOPULATED_ALLOC), mapping grants takes memory away from
 * the domain when the balloon has no page left. The domain gets it back, up to
 * its target, when the grants are unmapped, whatever the balloon driver has tried
 * in between. The target stays as it was set.
 */
#include <ctype.h>
#include <dirent.h>
#include <pthread.h>

#include "xen_grant.h"

#define RW		(PROT_READ | PROT_WRITE)
#define XEN_MEMORY	"/sys/devices/system/xen_memory/xen_memory0/"
#define KB(pages)	((pages) * (PAGE_SIZE / 1024))

/* Xen lets a grant be mapped 127 times: once for the process, once for the kernel. */
#define MAPS		20
#define TIMES		200
#define LONG_S		120

static long memory_kb(void)
{
	return read_number(XEN_MEMORY "info/current_kb");
}

static long target_kb(void)
{
	return read_number(XEN_MEMORY "target_kb");
}

static long balloon_kb(void)
{
	return read_number(XEN_MEMORY "info/low_kb") +
	       read_number(XEN_MEMORY "info/high_kb");
}

/* How often the balloon driver's thread has gone to sleep, or -1 */
static long thread_sleeps(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	long sleeps = -1;

	if (!proc)
		return -1;
	while (sleeps < 0 && (entry = readdir(proc))) {
		bool right = false;
		char line[300];
		FILE *file;

		if (!isdigit(entry->d_name[0]))
			continue;
		snprintf(line, sizeof(line), "/proc/%s/status", entry->d_name);
		file = fopen(line, "r");
		while (file && fgets(line, sizeof(line), file)) {
			right |= !strcmp(line, "Name:\txen-balloon\n");
			if (right)
				sscanf(line, "voluntary_ctxt_switches: %ld", &sleeps);
		}
		if (file)
			fclose(file);
	}
	closedir(proc);
	return sleeps;
}

/* Set the target, and wait until the balloon driver has done what it can. */
static bool set_target(long kb)
{
	long before = thread_sleeps();

	return before >= 0 && !write_number(XEN_MEMORY "target_kb", kb) &&
	       wait_for(thread_sleeps() > before);
}

/* All grants, mapped once */
struct mapping {
	__s64 index;
	void *mem;
};

static bool map(int gntdev, const grant_ref_t *ref, struct mapping *m)
{
	m->index = gntdev_add(gntdev, granter_domid(), ref, MAX_GRANTS);
	if (m->index < 0)
		return false;
	m->mem = mmap(NULL, MAX_GRANTS * PAGE_SIZE, RW, MAP_SHARED, gntdev, m->index);
	return m->mem != MAP_FAILED;
}

static bool unmap(int gntdev, const struct mapping *m)
{
	return !munmap(m->mem, MAX_GRANTS * PAGE_SIZE) &&
	       !gntdev_remove(gntdev, m->index, MAX_GRANTS);
}

static bool map_times(int gntdev, const grant_ref_t *ref, unsigned int count,
		      struct mapping *m)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (!map(gntdev, ref, &m[i]))
			return false;
	return true;
}

static bool unmap_times(int gntdev, unsigned int count, const struct mapping *m)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (!unmap(gntdev, &m[i]))
			return false;
	return true;
}

FIXTURE(balloon)
{
	struct xen_env env;
	long target;
	/*
	 * The memory when no test maps grants. It is less than the target where other
	 * grants are mapped: those by which the test sees the granter's memory, and
	 * those of back ends.
	 */
	long kb;
};

FIXTURE_SETUP(balloon)
{
	struct mapping m;
	long kb;

	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->target = target_kb();
	if (self->target < 0)
		SKIP(return, "no " XEN_MEMORY);
	if (balloon_kb())
		SKIP(return, "the balloon has %ld kB: it does not get empty", balloon_kb());
	if (!granter_address())
		ASSERT_TRUE(wait_for(memory_kb() == self->target));
	self->kb = memory_kb();

	ASSERT_TRUE(map(self->env.gntdev, self->env.grants.ref, &m));
	kb = memory_kb();
	ASSERT_TRUE(unmap(self->env.gntdev, &m));
	if (kb == self->kb)
		SKIP(return, "grants are not mapped onto pages of the balloon");
	ASSERT_TRUE(wait_for(memory_kb() == self->kb));
}

FIXTURE_TEARDOWN(balloon)
{
	/* Not to the old target at once: the driver might take that for no change. */
	if (target_kb() != self->target || memory_kb() != self->kb) {
		set_target(self->kb - KB(1024));
		set_target(self->target);
	}
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(balloon, memory_comes_back_although_the_balloon_was_empty)
{
	const struct xen_env *env = &self->env;
	struct mapping m[MAPS];

	ASSERT_TRUE(map_times(env->gntdev, env->grants.ref, MAPS, m));
	EXPECT_EQ(self->kb - KB(MAPS * MAX_GRANTS), memory_kb());
	EXPECT_EQ(0, balloon_kb());
	/* The balloon driver cannot reach the target now. */
	ASSERT_TRUE(set_target(self->target));
	EXPECT_EQ(self->kb - KB(MAPS * MAX_GRANTS), memory_kb());

	ASSERT_TRUE(unmap_times(env->gntdev, MAPS, m));
	EXPECT_TRUE(wait_for(memory_kb() == self->kb)) {
		TH_LOG("%ld of %ld kB", memory_kb(), self->kb);
	}
	EXPECT_EQ(self->target, target_kb());
}

/* The same while other grants stay mapped: the memory of free pages comes back. */
TEST_F(balloon, memory_comes_back_with_each_mapping_that_goes)
{
	const struct xen_env *env = &self->env;
	struct mapping m[MAPS];
	unsigned int i;

	ASSERT_TRUE(map_times(env->gntdev, env->grants.ref, MAPS, m));
	for (i = 0; i < MAPS; i++) {
		ASSERT_TRUE(set_target(self->target));
		ASSERT_TRUE(unmap(env->gntdev, &m[i]));
		EXPECT_TRUE(wait_for(memory_kb() ==
				     self->kb - KB((MAPS - 1 - i) * MAX_GRANTS))) {
			TH_LOG("mapping %u: %ld kB", i, memory_kb());
			break;
		}
	}
}

/* The domain has more memory than its target. */
TEST_F(balloon, target_stays_while_grants_take_more_than_the_balloon_has)
{
	const struct xen_env *env = &self->env;
	const long less = self->kb - KB(MAPS * MAX_GRANTS / 2);
	struct mapping m[MAPS];

	ASSERT_TRUE(set_target(less));
	ASSERT_TRUE(wait_for(memory_kb() == less));
	ASSERT_TRUE(map_times(env->gntdev, env->grants.ref, MAPS, m));
	EXPECT_EQ(self->kb - KB(MAPS * MAX_GRANTS), memory_kb());
	EXPECT_EQ(0, balloon_kb());
	ASSERT_TRUE(set_target(less));
	EXPECT_EQ(less, target_kb());

	ASSERT_TRUE(unmap_times(env->gntdev, MAPS, m));
	EXPECT_TRUE(wait_for(memory_kb() == less)) {
		TH_LOG("%ld of %ld kB", memory_kb(), less);
	}
	EXPECT_EQ(less, target_kb());
}

/* A guest may have a little more memory than it was told to have. */
static bool is_cut_down(long target, long from)
{
	return granter_address() ? target_kb() >= target && target_kb() < from :
				   target_kb() == target;
}

/* A target that cannot be reached is cut down to what can, as it always was. */
TEST_F(balloon, target_above_all_memory_is_cut_down_to_it)
{
	const struct xen_env *env = &self->env;
	struct mapping m[MAPS];

	ASSERT_TRUE(map_times(env->gntdev, env->grants.ref, MAPS, m));
	ASSERT_TRUE(set_target(self->target + KB(1024)));
	EXPECT_TRUE(wait_for(is_cut_down(self->target, self->target + KB(1024)))) {
		TH_LOG("target %ld kB, of %ld", target_kb(), self->target);
	}
	ASSERT_TRUE(unmap_times(env->gntdev, MAPS, m));
	EXPECT_TRUE(wait_for(memory_kb() == self->kb)) {
		TH_LOG("%ld of %ld kB", memory_kb(), self->kb);
	}
}

/* A thread that maps grants and unmaps them until it is told to stop. */
struct mapper {
	pthread_t thread;
	const struct xen_env *env;
	bool stop, failed;
	unsigned int rounds;
};

static void *map_and_unmap(void *data)
{
	struct mapper *m = data;
	int gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	struct mapping two[2];

	while (!m->failed && !__atomic_load_n(&m->stop, __ATOMIC_RELAXED)) {
		m->failed = !map_times(gntdev, m->env->grants.ref, 2, two) ||
			    !unmap_times(gntdev, 2, two);
		__atomic_fetch_add(&m->rounds, 1, __ATOMIC_RELAXED);
	}
	close(gntdev);
	return NULL;
}

static unsigned int rounds_of(const struct mapper *m)
{
	return __atomic_load_n(&m->rounds, __ATOMIC_RELAXED);
}

TEST_F_TIMEOUT(balloon, memory_is_what_it_should_be_after_grants_came_and_went, LONG_S)
{
	struct mapper m[2] = {};
	unsigned int i, seen;

	for (i = 0; i < 2; i++) {
		m[i].env = &self->env;
		ASSERT_EQ(0, pthread_create(&m[i].thread, NULL, map_and_unmap, &m[i]));
	}
	for (i = 0; i < TIMES; i++) {
		seen = rounds_of(&m[i % 2]);
		ASSERT_EQ(0, write_number(XEN_MEMORY "target_kb",
					  i % 2 ? self->target : self->kb - KB(512)));
		EXPECT_TRUE(wait_for(rounds_of(&m[i % 2]) > seen + 1));
	}
	for (i = 0; i < 2; i++)
		__atomic_store_n(&m[i].stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(m[i].thread, NULL));
		EXPECT_FALSE(m[i].failed);
	}
	EXPECT_TRUE(wait_for(memory_kb() == self->kb)) {
		TH_LOG("%ld of %ld kB", memory_kb(), self->kb);
	}
	EXPECT_EQ(self->target, target_kb());
}

TEST_HARNESS_MAIN
