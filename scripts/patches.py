# SPDX-License-Identifier: GPL-2.0
"""What apply, refresh, export and check share: the series and its commits.

A patch file is a mail: Subject, body, "---", project-only lines, diff.  The
diff changes files of the base, and files that earlier patches add.  The files that
a patch adds are named by its "Adds:" lines.  They lie in the repository at their
kernel path, as they are at the end of the series: the form in which the patch brings
them is what is left when the hunks of the later patches are taken back.

The series is written for the first base.  `series-VERSION` lists the same patches
for another one, where each is merged from the commit that it is on the first.  What
git cannot merge has a version of its own there, NAME.VERSION.patch.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(os.environ.get("TOP") or Path(__file__).parent.parent).resolve()
BUILD = Path(os.environ.get("BUILD") or TOP / "build").resolve()
# lib.sh reads the bases from there, too.
VERSIONS = re.findall(r"(?m)^[^#\n]*\blinux-source-([0-9.]+)\s", Path(__file__).with_name("packages").read_text())
MAIN = VERSIONS[0]
VERSION = os.environ.get("BASE") or MAIN
SERIES = "series" if VERSION == MAIN else f"series-{VERSION}"
# The end of the name of a patch that is for this base only.
OWN = ".patch" if VERSION == MAIN else f".{VERSION}.patch"
WORK = BUILD / VERSION
BASE = WORK / "base"
TREE = WORK / "tree"
LOGS = WORK / "logs"
# What apply last made: prefix -> commit, and what the repository's files were.
STATE = WORK / "applied.json"

BRANCH = "series"
NAME, MAIL = "grant mapping series", "series@example.invalid"


class Failure(Exception):
    """One line for the user."""


def say(text=""):
    print(text, flush=True)


def shown(path):
    """A path as the user knows it."""
    try:
        return str(Path(path).relative_to(TOP))
    except ValueError:
        return str(path)


def command(main):
    """Run a script's main(): a Failure is one line and exit status 1."""
    name = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if VERSION not in VERSIONS:
            raise Failure(f"BASE={VERSION}: the series is for {' '.join(VERSIONS)}")
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"{name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted")
    except BrokenPipeError:
        os._exit(1)


@functools.cache
def lock():
    """One writer at a time for a base; lib.sh's lock_build() is the same lock."""
    WORK.mkdir(parents=True, exist_ok=True)
    held = open(WORK / ".lock", "w", encoding="ascii")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"another run is at work in {shown(WORK)}: wait for it") from None
    return held  # the cache keeps it open, and so locked, until the script ends


class Arguments(argparse.ArgumentParser):
    """The script's docstring is its --help; a wrong argument is one line."""

    def __init__(self, doc):
        super().__init__(description=doc, usage=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def format_help(self):
        return self.description.strip("\n") + "\n"

    def error(self, message):
        raise Failure(f"{message} (see --help)")


def clean_environment():
    """No user's or caller's git settings: the result depends on the series alone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env.update(LC_ALL="C.UTF-8", LANGUAGE="", GIT_CONFIG_GLOBAL="/dev/null",
               GIT_CONFIG_SYSTEM="/dev/null", GIT_LITERAL_PATHSPECS="1",
               GIT_OPTIONAL_LOCKS="0")
    return env


def run(argv, cwd=None, stdin="", env=None):
    """Run a command; bytes that are not UTF-8 survive the way through."""
    try:
        # A group of its own, so that an interrupt ends all that it started.
        child = subprocess.Popen([str(a) for a in argv], cwd=cwd, process_group=0,
                                 env=clean_environment() | (env or {}), stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise Failure(f"{error.filename} is missing") from None
    try:
        out, err = child.communicate(stdin.encode("utf-8", "surrogateescape"))
    except BaseException:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()
        raise
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def text(data):
    return data.decode("utf-8", "surrogateescape")


def git(repo, *args, stdin="", env=None):
    done = run(["git", "-C", repo, *args], stdin=stdin, env=env)
    if done.returncode:
        lines = text(done.stderr).strip().split("\n")
        why = next((line for line in lines if line.startswith(("error:", "fatal:"))), lines[-1])
        raise Failure(f"git {args[0]} in {shown(repo)}: {why}")
    return text(done.stdout)


@functools.cache
def base_commit():
    """The one commit of the base's repository, the tag `base`."""
    if not (BASE / ".git").exists():
        raise Failure(f"no {shown(BASE)}: run `make setup` first")
    done = run(["git", "-C", BASE, "rev-parse", "-q", "--verify", "base^{commit}"])
    if done.returncode:
        raise Failure(f"no tag `base` in {shown(BASE)}: run `make setup` again")
    return text(done.stdout).strip()


@functools.cache
def base_modes(paths):
    """{path: mode} of those of `paths` that the base has."""
    listed = git(BASE, "ls-tree", "-z", base_commit(), "--", *paths) if paths else ""
    return {entry.split("\t", 1)[1]: entry.split(" ", 1)[0]
            for entry in listed.split("\0") if entry}


def in_base(paths):
    return set(base_modes(tuple(sorted(set(paths)))))


# -- The series ---------------------------------------------------------------

class Patch:
    """One patch file, taken apart."""

    def __init__(self, path, content):
        self.path = path
        lines = content.split("\n")
        if not lines[0].startswith("Subject: "):
            raise Failure(f"{path}: the first line is not `Subject: ...`")
        if "---" not in lines:
            raise Failure(f"{path}: no `---` line between the description and the rest")
        end = lines.index("---")
        self.head = lines[:lines.index("")] if "" in lines[:end] else lines[:end]
        # A long subject may be folded, as in any mail.
        self.subject = re.sub(r"\n[ \t]+", " ", "\n".join(self.head))[len("Subject: "):].split("\n")[0].strip()
        self.body = "\n".join(lines[len(self.head):end]).strip("\n")
        rest = lines[end + 1:]
        start = next((i for i, line in enumerate(rest)
                      if re.match(r"diff -|--- |Index: ", line)), len(rest))
        self.notes = "\n".join(rest[:start]).strip("\n")
        self.diff = "\n".join(rest[start:])
        self.adds = [word for line in re.findall(r"(?m)^Adds:(.*)$", self.notes)
                     for word in line.split()]
        # {path: (mode, blob)} of what it adds, in the form in which it brings it.
        self.files = {}
        # Empty lines keep the line numbers of the file in git's messages.
        self.padded = "\n" * (end + 1 + start) + self.diff

    @property
    def shared(self):
        """Is it for the first base, and merged from there?"""
        return not self.path.endswith(OWN)

    @property
    def message(self):
        return self.subject + (f"\n\n{self.body}" if self.body else "") + "\n"

    @functools.cached_property
    def changes(self):
        """The files the diff changes."""
        if not self.diff:
            return []
        done = run(["git", "apply", "--numstat", "-z", "-"], stdin=self.padded, cwd="/")
        if done.returncode:
            raise Failure(apply_error(self, text(done.stderr)))
        if re.search(r"(?m)^(rename|copy) (from|to) |^GIT binary patch|^Binary files ", self.diff):
            raise Failure(f"{self.path}: renames, copies and binary changes do not belong in the series")
        return [entry.split("\t")[2] for entry in text(done.stdout).split("\0") if entry]

    def written(self):
        """The file's canonical text."""
        head = f"Subject: {self.subject}\n\n" + (f"{self.body}\n" if self.body else "")
        notes = f"{self.notes}\n" if self.notes else ""
        return f"{head}---\n{notes}" + (f"\n{self.diff}" if self.diff else "")

    def content(self):
        """What of the file reaches the tree: everything but the project-only lines."""
        return repr((self.message, self.diff, sorted(self.adds)))


def apply_error(patch, stderr):
    """git apply's complaint as one line that names patch, file and hunk."""
    return f"{patch.path} does not apply: {failed_hunk(patch, stderr)}"


def failed_hunk(patch, stderr, side="-"):
    """Where git apply failed; `side` of the diff is the one that it looked for."""
    failed = re.search(r"(?m)^error: patch failed: (.*):(\d+)$", stderr)
    if failed:
        name, line = failed.groups()
        return f"{name}, hunk {hunk_number(patch.diff, name, line, side)} (line {line})"
    return (re.findall(r"(?m)^error: (.*)$", stderr) or [stderr.strip().split("\n")[-1]])[0]


def hunk_number(diff, name, line, side):
    """Which of the hunks for file `name` is the one at this line of that side."""
    for part in re.split(r"(?m)^--- a/", diff)[1:]:
        if part.split("\n", 1)[0].split("\t")[0] == name:
            starts = re.findall(rf"(?m)^@@ .*?\{side}(\d+)", part)
            if line in starts:
                return starts.index(line) + 1
    return "?"


def safe(path):
    return not (path.startswith("/") or ".." in path.split("/") or path == "")


def read_bytes(path, why):
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(f"{shown(path)}: {error.strerror.lower()}, {why}") from None


def series_sets(top=TOP, name=SERIES):
    """{set: its patches} in order; a set begins with a line `# NAME` of `series`."""
    sets, seen = {}, set()
    lines = (top / name).read_text().splitlines() if (top / name).exists() else []
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        head = re.fullmatch(r"# ([a-z0-9][a-z0-9-]*)", line)
        if head:
            if head[1] in sets:
                raise Failure(f"{where}: set {head[1]} begins for the second time")
            sets[head[1]] = []
            continue
        if not re.fullmatch(r"[^\s#]+\.patch", line) or not safe(line):
            raise Failure(f"{where}: neither the path of a patch nor `# SET`: `{line}`")
        if line in seen:
            raise Failure(f"{where}: {line} is listed twice")
        if not sets:
            raise Failure(f"{where}: {line} is in no set: a line `# SET` has to stand above it")
        seen.add(line)
        sets[next(reversed(sets))].append(line)
    for head, members in sets.items():
        if not members:
            raise Failure(f"{name}: set {head} has no patches")
    return sets


def series_paths(top=TOP, name=SERIES):
    """The patches of `series`; none when there is no such file."""
    return [path for paths in series_sets(top, name).values() for path in paths]


def series_text(paths):
    """`series` with these patches, each in its set, a new one in that of the patch before it."""
    old = series_sets()
    place = {path: name for name, members in old.items() for path in members}
    sets, current = {}, next(iter(old), "all")
    for path in paths:
        # It may have got a version of its own.
        current = place.get(path) or place.get(path.removesuffix(OWN) + ".patch") or current
        if sets and current in sets and current != next(reversed(sets)):
            raise Failure(f"{path} is of set {current} and comes after patches of set {next(reversed(sets))}: "
                          "move the commit, or move its line in `series` to the other set first")
        sets.setdefault(current, []).append(path)
    return "".join(f"# {name}\n" + "".join(f"{path}\n" for path in members) for name, members in sets.items())


def load_series(top=TOP):
    """The patches of the series, checked against each other and the base."""
    patches = [Patch(path, text(read_bytes(top / path, f"but `{SERIES}` lists it")))
               for path in series_paths(top)]
    owner, subjects = {}, {}
    for patch in patches:
        if patch.subject in subjects:
            raise Failure(f"{patch.path} has the Subject of {subjects[patch.subject]}")
        subjects[patch.subject] = patch.path
        for path in patch.adds:
            if not safe(path) or path.endswith(".patch"):
                raise Failure(f"{patch.path}: `Adds: {path}` is not a kernel path")
            if path in owner:
                raise Failure(f"{path} is added by {owner[path]} and by {patch.path}: "
                              "keep it in one of them")
            owner[path] = patch.path
            if not (top / path).is_file() or (top / path).is_symlink():
                raise Failure(f"{patch.path} adds {path}, which is no file in the repository")
    require_order(patches, owner)
    bring(patches, top)
    return patches


def require_order(patches, owner):
    """Each patch changes only what is there; `owner` tells which patch adds a file."""
    here = [patch for patch in patches if not patch.shared]
    changed = [path for patch in here for path in patch.changes]
    known = in_base(list(owner) + changed)
    for patch in patches:
        for path in patch.adds:
            if path in known:
                raise Failure(f"{patch.path} adds {path}, which the base already has")
    added = set()
    for patch in patches:
        for path in [] if patch.shared else patch.changes:
            if path in patch.adds:
                raise Failure(f"{patch.path} adds {path} and changes it: fold the change into the file")
            if path in owner and path not in added:
                raise Failure(f"{patch.path} changes {path}, which {owner[path]} adds later: "
                              f"move its line in `{SERIES}` behind that one")
            if path not in known and path not in owner:
                raise Failure(f"{patch.path} changes {path}, which the base does not have: "
                              "a new file is a file of the repository, named in `Adds:`")
            if path in owner and (f"\n--- a/{path}\n+++ /dev/null\n" in patch.diff
                                  or f"\n--- /dev/null\n+++ b/{path}\n" in patch.diff):
                raise Failure(f"{patch.path} creates or deletes {path}, which {owner[path]} adds: "
                              "a later patch may only change it")
        added.update(patch.adds)


def bring(patches, top):
    """Fill in each patch's `files`: the repository's, without what later patches change.

    A shared patch brings what its commit on the first base brings.
    """
    files = stored([path for patch in patches if not patch.shared for path in patch.adds], top)
    for patch in reversed(patches):
        if not patch.shared:
            patch.files = {path: files.pop(path) for path in patch.adds}
        # Without files of this kind, do not ask git about each patch.
        if files:
            files |= rework(patch, files, "--reverse")


def stored(paths, top):
    """{path: (mode, blob)} of the repository's files, which the base's git then has, too."""
    blobs = git(BASE, "hash-object", "-w", "--no-filters", "--stdin-paths",
                stdin="".join(f"{top / path}\n" for path in paths)).split()
    return {path: (mode_of(top / path), name) for path, name in zip(paths, blobs)}


def index_lines(files):
    """{path: (mode, blob)} as git update-index reads it."""
    return "".join(f"{mode} {name}\t{path}\n" for path, (mode, name) in files.items())


def rework(patch, files, *options):
    """What the patch makes of those of the files that it changes."""
    mine = {path: files[path] for path in patch.changes if path in files}
    if not mine:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": f"{scratch}/index"}
        git(BASE, "update-index", "--add", "--index-info", stdin=index_lines(mine), env=env)
        done = run(["git", "-C", BASE, "apply", "--cached", "--whitespace=nowarn", *options,
                    *(f"--include={path}" for path in mine), "-"], stdin=patch.padded, env=env)
        if done.returncode and "--reverse" in options:
            raise Failure(f"{patch.path} cannot be taken back: {failed_hunk(patch, text(done.stderr), '+')}: "
                          "the repository's file has to be as this patch and those after it leave it")
        if done.returncode:
            raise Failure(apply_error(patch, text(done.stderr)))
        entries = git(BASE, "ls-files", "-s", "-z", env=env).split("\0")[:-1]
    return {entry.split("\t", 1)[1]: tuple(entry.split(" ")[:2]) for entry in entries}


def mode_of(path):
    return "100755" if os.access(path, os.X_OK) else "100644"


def blob(data):
    """git's name for a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def fingerprints(patches, top=TOP):
    """{path: what counts of it} for `series`' patches and the files they add."""
    files = {}
    for patch in patches:
        files[patch.path] = blob(patch.content().encode("utf-8", "surrogateescape"))
        if patch.shared:
            # Merging depends on the code around it, too.
            files[patch.path] += " ".join(["", *main_commits().get(patch.path, ())])
        for path in patch.adds:
            files[path] = f"{mode_of(top / path)} {blob((top / path).read_bytes())}"
    return files


def read_state():
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {"commits": {}, "files": {}, "applied": []}


def write_state(commits, patches, files):
    fresh = STATE.with_suffix(".new")
    fresh.write_text(json.dumps({"commits": commits, "files": files,
                                 "applied": [patch.path for patch in patches]}, indent=1) + "\n")
    fresh.replace(STATE)


def identity(name, mail, date):
    return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", name), ("EMAIL", mail), ("DATE", date))}


@functools.cache
def base_date():
    """Commits are dated like the base: the same series has the same hashes."""
    return git(BASE, "log", "-1", "--format=%ct +0000", base_commit()).strip()


@functools.cache
def main_commits():
    """{path: (parent, commit)} of the series on the first base."""
    done = run([Path(__file__).with_name("apply"), "--print-commits"], env={"BASE": MAIN})
    if done.returncode:
        raise Failure(f"on {MAIN}: {text(done.stderr).strip()}")
    result, parent = {}, None
    for line in text(done.stdout).splitlines():
        path, _, commit = line.partition("\t")
        if parent:
            result[path] = parent, commit
        parent = commit
    return result


def commit_series(patches, top=TOP):
    """Commit the patches onto the base, no work tree involved.

    Returns ({prefix: commit} in order, lines about hunks that had to move).
    A prefix is known by what went into it, so only what changed is done anew.
    """
    files = fingerprints(patches, top)
    done = read_state()["commits"]
    code = blob(Path(__file__).read_bytes())
    prefix, parent = f"{code} {base_commit()}", base_commit()
    commits, moved, index = {}, [], None
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": f"{scratch}/index", **identity(NAME, MAIL, base_date())}
        for patch in patches:
            # The form in which the patch brings a file depends on later patches, too.
            parts = [prefix, f"{patch.path} {files[patch.path]}", index_lines(patch.files)]
            prefix = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            known = done.get(prefix)
            if known and exists(known):
                parent, index = known, None
            else:
                if patch.shared:
                    tree = merge(patch, parent, env)
                else:
                    if index != parent:
                        git(BASE, "read-tree", parent, env=env)
                    moved += stage(patch, env)
                    tree = git(BASE, "write-tree", env=env).strip()
                if tree == git(BASE, "rev-parse", f"{parent}^{{tree}}").strip():
                    raise Failure(f"{patch.path} changes nothing")
                parent = git(BASE, "commit-tree", tree, "-p", parent, stdin=patch.message, env=env).strip()
                index = None if patch.shared else parent
            commits[prefix] = parent
    if [patch.path for patch in patches] == series_paths(top):
        require_files(patches, parent, top)
    return commits, moved


def require_files(patches, commit, top):
    """The commit at the end has the files that patches add as the repository has them."""
    paths = [path for patch in patches for path in patch.adds]
    listed = git(BASE, "ls-tree", "-z", commit, "--", *paths).split("\0")[:-1] if paths else []
    for entry in listed:
        (mode, _, name), path = entry.split("\t", 1)[0].split(" "), entry.split("\t", 1)[1]
        if (mode, name) != (mode_of(top / path), blob((top / path).read_bytes())):
            names = ", ".join(patch.path for patch in patches if path in patch.changes)
            raise Failure(f"`{SERIES}` does not end with {path} as it is in the repository: "
                          + (f"see what is changed in it by {names}" if names else
                             f"list the patches of {MAIN} that change it"))


def merge(patch, parent, env):
    """The tree of a patch of the first base on top of `parent`."""
    if patch.path not in main_commits():
        raise Failure(f"{SERIES} lists {patch.path}, which is not in `series`: "
                      f"a patch for {VERSION} only ends in {OWN}")
    before, after = main_commits()[patch.path]
    # git merge-tree of Debian 12 takes two commits that have a parent in common.
    root = git(BASE, "commit-tree", f"{before}^{{tree}}", stdin="before", env=env).strip()
    sides = [git(BASE, "commit-tree", f"{commit}^{{tree}}", "-p", root, stdin="side", env=env).strip()
             for commit in (parent, after)]
    # A file that looks like a new one is no rename.
    done = run(["git", "-C", BASE, "-c", "merge.renames=false", "merge-tree", "--write-tree",
                "--name-only", "--no-messages", *sides])
    lines = text(done.stdout).splitlines()
    if done.returncode:
        names = ", ".join(lines[1:]) or text(done.stderr).strip()
        raise Failure(f"{patch.path} does not merge on {VERSION}: {names}; it needs a version of its own, "
                      f"{patch.path.removesuffix('.patch')}{OWN}")
    return lines[0]


def exists(commit):
    return run(["git", "-C", BASE, "cat-file", "-e", f"{commit}^{{tree}}"]).returncode == 0


def stage(patch, env):
    """Apply one patch to the index and add its new files."""
    moved = []
    if patch.diff:
        applied = run(["git", "-C", BASE, "apply", "--cached", "--verbose",
                       "--whitespace=nowarn", "-"], stdin=patch.padded, env=env)
        output = text(applied.stderr)
        if applied.returncode:
            raise Failure(apply_error(patch, output))
        name = "?"
        for line in output.split("\n"):
            if line.startswith("Checking patch "):
                name = line[len("Checking patch "):].removesuffix("...")
            hunk = re.match(r"Hunk #(\d+) succeeded at \d+ \(offset (-?\d+) lines?\)", line)
            if hunk:
                moved.append(f"{patch.path}: {name}, hunk {hunk[1]} moved by {hunk[2]} lines")
    if patch.files:
        git(BASE, "update-index", "--add", "--index-info", stdin=index_lines(patch.files), env=env)
    return moved


def tree_hash(commit, repo=BASE):
    return git(repo, "rev-parse", f"{commit}^{{tree}}").strip()


def tip(commits):
    return list(commits.values())[-1] if commits else base_commit()


# -- From commits back to files ----------------------------------------------

def raw_changes(parent, commit):
    """[(path, mode, blob)] a commit changes; mode 000000 for a deleted file."""
    fields = git(BASE, "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev",
                 parent, commit).split("\0")
    return [(path, *(entry.split(" ")[i] for i in (1, 3)))
            for entry, path in zip(fields[0::2], fields[1::2])]


def diff_of(parent, commit, paths):
    """The diff in the one form the repository keeps; without `index` lines,
    which would change with the base although the patch does not."""
    if not paths:
        return ""
    diff = git(BASE, "diff-tree", "-p", "-U3", "--no-renames", "--no-color", "--no-ext-diff",
               "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", parent, commit, "--", *paths)
    return re.sub(r"(?m)^index .*\n", "", diff)


def commit_message(commit):
    """(subject, body), the body without empty lines around it."""
    subject, _, body = git(BASE, "log", "-1", "--format=%s%x00%b", commit).partition("\0")
    return subject, body.strip("\n")


class Planned(Patch):
    """A patch as a commit makes it.

    `files` are the new files that it brings, `leaves` those and what it makes of
    the ones in `owner`, which earlier commits bring.
    """

    def __init__(self, parent, commit, owner):  # pylint: disable=super-init-not-called
        self.path, self.notes = None, ""
        self.subject, self.body = commit_message(commit)
        if re.match(r"(fixup|squash|amend)! ", self.subject):
            raise Failure(f"commit `{self.subject}` is not squashed yet: "
                          f"`git -C {shown(TREE)} rebase -i --autosquash base`")
        if "---" in self.body.split("\n"):
            raise Failure(f"commit `{self.subject}`: a line `---` would end the mail's text: take it out")
        changes = raw_changes(parent, commit)
        known = in_base(path for path, _, _ in changes)
        self.leaves = {path: (mode, name) for path, mode, name in changes if path not in known}
        self.files = {path: self.leaves[path] for path in self.leaves if path not in owner}
        self.adds = sorted(self.files)
        self.paths = [path for path, _, _ in changes if path not in self.files]
        self.diff = diff_of(parent, commit, self.paths)
        if not changes:
            raise Failure(f"commit `{self.subject}` changes nothing: drop it")
        if re.search(r"(?m)^Binary files ", self.diff):
            raise Failure(f"commit `{self.subject}` changes a binary file, which a patch cannot carry")

    def follow(self, old):
        """Be the successor of patch `old`: its place and its project-only lines."""
        self.path, self.notes = old.path, old.notes
        if sorted(old.adds) != self.adds:
            kept = re.sub(r"(?m)^Adds:.*\n?", "", old.notes).strip("\n")
            self.notes = "\n".join([*(f"Adds: {path}" for path in self.adds), *([kept] if kept else [])])

    def found(self, taken):
        """Be a new patch: named by its subject, next to the first file it changes."""
        place = (self.paths or self.adds)[0].rpartition("/")[0]
        slug = re.sub(r"[^a-z0-9]+", "-", self.subject.lower()).strip("-")
        slug = slug if len(slug) <= 52 else slug[:53].rpartition("-")[0]
        names = (f"{slug}{suffix}{OWN}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        paths = (f"{place}/{name}" if place else name for name in names)
        self.path = next(path for path in paths if path not in taken)
        self.notes = "\n".join([*(f"Adds: {path}" for path in self.adds), "Upstream: not yet (new)"])


def plan(commits, old):
    """The patches that the commits make; `old` are those they may continue."""
    planned, parent, owner = [], base_commit(), {}
    for commit in commits:
        patch = Planned(parent, commit, owner)
        for path, (mode, _) in patch.leaves.items():
            if mode == "000000":
                raise Failure(f"commit `{patch.subject}` deletes or renames {path}, which `{owner[path]}` adds: "
                              "a later commit may only change it")
            if mode not in ("100644", "100755"):
                raise Failure(f"commit `{patch.subject}`: {path} is no plain file")
        owner.update(dict.fromkeys(patch.files, patch.subject))
        if patch.subject in (other.subject for other in planned):
            raise Failure(f"two commits have the subject `{patch.subject}`: reword one")
        planned.append(patch)
        parent = commit

    by_subject = {patch.subject: patch for patch in old}
    left = [patch for patch in old if patch.subject not in {new.subject for new in planned}]
    taken = {patch.path for patch in old}
    for patch in planned:
        # A commit that was only reworded still has its patch's content.
        match = by_subject.get(patch.subject) or next(
            (other for other in left
             if (other.diff, sorted(other.adds)) == (patch.diff, patch.adds)), None)
        if match:
            patch.follow(match)
            left = [other for other in left if other is not match]
        else:
            patch.found(taken)
            taken.add(patch.path)
    return planned


def differing(planned, commits):
    """Those of the patches shared with the first base that are not what it gives here."""
    result, parent = [], base_commit()
    for patch, commit in zip(planned, commits):
        if patch.shared:
            same = Patch(patch.path, text((TOP / patch.path).read_bytes())).message == patch.message
            try:
                tree = merge(patch, parent, identity(NAME, MAIL, base_date()))
            except Failure:
                tree = None
            if not same or tree != tree_hash(commit):
                result.append(patch)
        parent = commit
    return result


def ends(planned):
    """{path: (mode, blob)} of the files that the planned patches add, after the last of them."""
    return {path: patch.leaves[path] for patch in planned for path in patch.leaves}


def write_plan(planned, top):
    """Write the planned patches, their files and `series` below `top`."""
    for patch in planned:
        if patch.shared:
            put(top / patch.path, (TOP / patch.path).read_bytes())
        else:
            put(top / patch.path, patch.written().encode("utf-8", "surrogateescape"))
    for path, (mode, name) in ends(planned).items():
        put(top / path, cat_blob(name), mode)
    put(top / SERIES, series_text([patch.path for patch in planned]).encode())


def cat_blob(name):
    return run(["git", "-C", BASE, "cat-file", "blob", name]).stdout


def put(path, data, mode="100644"):
    """Write a file unless it already is what it should be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
    if mode_of(path) != mode:
        path.chmod(0o755 if mode == "100755" else 0o644)


# -- build/tree ---------------------------------------------------------------

def require_worktree(tree):
    """A work tree outlives its repository when build/base alone is made anew."""
    if run(["git", "-C", tree, "rev-parse", "--verify", "-q", "HEAD"]).returncode:
        raise Failure(f"{shown(tree)} belongs to a base that is gone: delete it")


def require_clean_tree(advice):
    """build/tree is on its branch and everything in it is committed."""
    require_worktree(TREE)
    tree = shown(TREE)
    head = run(["git", "-C", TREE, "symbolic-ref", "-q", "--short", "HEAD"])
    if text(head.stdout).strip() != BRANCH:
        raise Failure(f"{tree} is not on branch {BRANCH}: end the rebase there, or "
                      f"`git -C {tree} checkout {BRANCH}`")
    dirty = [line[3:] for line in git(TREE, "status", "--porcelain", "-uno").split("\n")[:-1]]
    if dirty:
        raise Failure(f"{tree} has uncommitted work ({some(dirty)}): {advice}")
    fresh = untracked()
    if fresh:
        raise Failure(f"{tree} has a file that git does not know ({some(fresh)}): delete it, "
                      f"or `git -C {tree} add -f` it and {advice}")


def some(paths):
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def untracked():
    """New files of build/tree.

    Debian's .gitignore hides everything: see past that, but not past the
    kernel's own patterns.
    """
    paths = git(TREE, "ls-files", "-z", "-o", "--exclude-standard", "-x", "!/*", "-x", "/obj-*")
    return [path for path in paths.split("\0") if "/" in path and not path.startswith(".")]


def head_commit():
    return git(TREE, "rev-parse", "HEAD").strip()
