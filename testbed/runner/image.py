# SPDX-License-Identifier: GPL-2.0
"""The initramfs of dom0 and of the guests.

Packed in memory for every run: that takes less time than to tell whether an
earlier one is still right, and leaves nothing behind.
"""

import gzip
import os
import re
import stat
import subprocess
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
# As in scripts/lib.sh: what is made, and what of it is made of one base.
BUILD = os.path.abspath(os.environ.get('BUILD') or os.path.join(TOP, 'build'))


with open(os.path.join(TOP, 'scripts/packages'), encoding='ascii') as packages:
    PACKAGE_LIST = packages.read()


def default_base():
    return re.findall(r'(?m)^[^#\n]*\blinux-source-([0-9.]+)\s', PACKAGE_LIST)[0]


def packages_named(prefix):
    """The kinds of packages that begin so, in order."""
    return list(dict.fromkeys(re.findall(rf'(?m)^({prefix}\S*)\s', PACKAGE_LIST)))


WORK = os.path.join(BUILD, os.environ.get('BASE') or default_base())

# What runs in dom0 and in the guests.
SOURCES = os.path.join(HERE, 'initramfs')
TOOLS = ['xl', 'xenstored', 'xenconsoled', 'xen-init-dom0', 'libxl-save-helper', 'xen-diag', 'xentrace']
STORE_CLIENTS = ['usr/bin/xenstore-' + name for name in
                 ('chmod', 'exists', 'list', 'ls', 'read', 'rm', 'watch', 'write')]


class Architecture(NamedTuple):
    """What differs between the machines: where their programs come from and lie."""
    xen: str            # the hypervisor in the unpacked packages, but for its version
    tools: str          # the prefix of the compiler and of its tools
    triplet: str        # the name of the folders with libraries
    loader: str         # the dynamic loader


ARCHITECTURES = {
    'x86': Architecture('boot/xen-{}-amd64.gz', '', 'x86_64-linux-gnu', 'lib64/ld-linux-x86-64.so.2'),
    'arm64': Architecture('boot/xen-{}-arm64', 'aarch64-linux-gnu-', 'aarch64-linux-gnu', 'lib/ld-linux-aarch64.so.1'),
}
# Where the packages of an architecture and a version of Xen are unpacked, and what
# does that
PACKAGES = {
    ('x86', '4.17'): ('xen', 'make setup'),
    ('x86', '4.20'): ('xen-4.20', 'scripts/setup xen-4.20'),
    ('arm64', '4.17'): ('xen-arm64', 'scripts/setup arm64'),
    ('arm64', '4.20'): ('xen-arm64-4.20', 'scripts/setup arm64 xen-4.20'),
}
XENS = sorted({version for _, version in PACKAGES})


class ImageError(Exception):
    pass


class Cpio:
    """An archive in the kernel's "newc" format; the same content gives the same bytes."""

    def __init__(self):
        self.parts = []
        self.inode = 0
        self.dirs = set()

    def _entry(self, name, mode, data=b'', device=(0, 0)):
        self.inode += 1
        encoded = os.fsencode(name) + b'\0'
        fields = [self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0]
        head = b'070701' + b''.join(b'%08X' % field for field in fields) + encoded
        self.parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def _parents(self, name):
        parent = os.path.dirname(name)
        if parent and parent not in self.dirs:
            self.mkdir(parent)

    def mkdir(self, name, mode=0o755):
        name = name.strip('/')
        if name and name not in self.dirs:
            self._parents(name)
            self.dirs.add(name)
            self._entry(name, stat.S_IFDIR | mode)

    def file(self, name, data, mode=0o644):
        name = name.lstrip('/')
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        name = name.lstrip('/')
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def device(self, name, mode, major, minor):
        self._parents(name)
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def copy(self, source, name):
        """Copies a file, a symbolic link or a whole directory."""
        try:
            info = os.lstat(source)
            if stat.S_ISLNK(info.st_mode):
                self.link(name, os.readlink(source))
            elif stat.S_ISDIR(info.st_mode):
                self.mkdir(name, stat.S_IMODE(info.st_mode))
                for entry in sorted(os.listdir(source)):
                    self.copy(os.path.join(source, entry), os.path.join(name, entry))
            elif stat.S_ISREG(info.st_mode):
                with open(source, 'rb') as f:
                    self.file(name, f.read(), stat.S_IMODE(info.st_mode))
            else:
                raise ImageError(f'{source} is neither a file nor a directory')
        except OSError as error:
            raise ImageError(f'cannot read {source}: {error.strerror}') from None

    def write(self, fd):
        """Ends the archive and writes it to the open file fd."""
        self._entry('TRAILER!!!', 0)
        with os.fdopen(os.dup(fd), 'wb') as f:
            f.writelines(self.parts)

    def bytes(self):
        self._entry('TRAILER!!!', 0)
        return b''.join(self.parts)


class Image:
    """Makes the archives out of the unpacked packages of an architecture and a version of Xen."""

    def __init__(self, arch='x86', xen=XENS[0]):
        if (arch, xen) not in PACKAGES:
            raise ImageError(f'no Xen {xen} for {arch}')
        self.arch = ARCHITECTURES[arch]
        self.name = arch
        self.version = xen
        folder, self.setup = PACKAGES[arch, xen]
        self.root = os.path.join(BUILD, folder)
        if not os.path.isdir(self.root):
            raise ImageError(f"no Xen in {self.root}: run '{self.setup}'")

    def _made(self, name):
        directory = os.path.join(BUILD, 'image')
        os.makedirs(directory, exist_ok=True)
        return os.path.join(directory, name)

    def xen(self):
        """The path of the hypervisor, unpacked: QEMU does not load it compressed."""
        packed = os.path.join(self.root, self.arch.xen.format(self.version))
        if not packed.endswith('.gz'):
            return packed
        plain = self._made(f'xen-{self.version}')
        if is_older(plain, packed):
            try:
                with gzip.open(packed) as f:
                    data = f.read()
                with open(f'{plain}.{os.getpid()}', 'wb') as f:
                    f.write(data)
                os.replace(f.name, plain)
            except OSError as error:
                raise ImageError(f'cannot unpack {packed}: {error}') from None
        return plain

    def _agent(self):
        source = os.path.join(SOURCES, 'agent.c')
        program = self._made('agent' if self.name == 'x86' else f'agent-{self.name}')
        if is_older(program, source):
            made = f'{program}.{os.getpid()}'
            try:
                subprocess.run([self.arch.tools + 'gcc', '-static', '-Os', '-s', '-Wall', '-o', made, source],
                               check=True, capture_output=True, text=True)
                os.replace(made, program)
            except OSError as error:
                raise ImageError(f'cannot compile {source}: {error}') from None
            except subprocess.CalledProcessError as error:
                raise ImageError(f'cannot compile {source}:\n{error.stderr}') from None
        return program

    def _busybox(self, cpio, names):
        """Busybox, all its applets, our agent under the given names, and load-modules."""
        cpio.copy(busybox(self.root), 'bin/busybox')
        # The host cannot run that of another architecture; Debian makes all alike.
        runs = busybox(os.path.join(BUILD, PACKAGES['x86', XENS[0]][0]))
        applets = subprocess.run([runs, '--list'], check=True, capture_output=True, text=True)
        for applet in applets.stdout.split():
            if applet != 'busybox':
                cpio.link('bin/' + applet, 'busybox')
        cpio.copy(self._agent(), 'bin/agent')
        for name in names:
            cpio.link('bin/' + name, 'agent')
        cpio.copy(os.path.join(SOURCES, 'load-modules'), 'bin/load-modules')
        for name in ('proc', 'sys', 'dev', 'run', 'tmp', 'root', 'etc'):
            cpio.mkdir(name)
        # The kernel opens it before /init runs.
        cpio.device('dev/console', 0o600, 5, 1)

    def _programs(self, cpio, programs):
        """Dynamic programs of Debian's packages with the libraries they need."""
        loader = os.path.basename(self.arch.loader)
        libraries = {loader}
        for program in programs:
            path = os.path.join(self.root, program)
            cpio.copy(path, 'bin/' + os.path.basename(path))
            libraries |= self._needed(path)
        todo = sorted(libraries)
        for library in todo:
            path = self._library(library)
            name = self.arch.loader if library == loader else f'lib/{self.arch.triplet}/{library}'
            with open(path, 'rb') as f:
                cpio.file(name, f.read(), 0o755)
            # The list grows while we walk through it.
            todo += sorted(self._needed(path) - set(todo))

    def _library(self, name):
        for directory in ('lib', 'usr/lib'):
            path = os.path.join(self.root, directory, self.arch.triplet, name)
            if os.path.exists(path):
                return path
        raise ImageError(f"no {name} in {self.root}: run '{self.setup}'")

    def _needed(self, path):
        dump = subprocess.run([self.arch.tools + 'objdump', '-p', path], capture_output=True, text=True, check=False)
        if dump.returncode:
            raise ImageError(f"cannot read {path}: {dump.stderr.strip()}")
        words = [line.split() for line in dump.stdout.splitlines()]
        return {word[1] for word in words if word[:1] == ['NEEDED']}

    def dom0(self):
        cpio = Cpio()
        self._busybox(cpio, ['relay', 'guest'])
        cpio.copy(os.path.join(SOURCES, 'init'), 'init')
        return cpio

    def toolstack(self, cpio):
        tools = f'usr/lib/xen-{self.version}/bin'
        self._programs(cpio, [f'{tools}/{tool}' for tool in TOOLS] + STORE_CLIENTS)
        # dlopen()ed by pthread_exit(): no NEEDED entry names it.
        cpio.copy(self._library('libgcc_s.so.1'), f'lib/{self.arch.triplet}/libgcc_s.so.1')
        cpio.copy(os.path.join(SOURCES, 'start-guests'), 'bin/start-guests')
        cpio.copy(os.path.join(SOURCES, 'hotplug'), 'etc/xen/scripts/block')
        cpio.link('etc/xen/scripts/vif-bridge', 'block')
        # libxl looks for its helpers where Debian puts them.
        cpio.link(tools, '/bin')
        cpio.mkdir('var/lib/xen')
        cpio.mkdir('var/log/xen')
        cpio.mkdir('var/run')

    def guest(self):
        cpio = Cpio()
        self._busybox(cpio, ['guestd'])
        self._programs(cpio, STORE_CLIENTS)
        cpio.copy(os.path.join(SOURCES, 'guest-init'), 'init')
        return cpio


def busybox(root):
    """Debian 13 has /bin in /usr."""
    path = os.path.join(root, 'bin/busybox')
    return path if os.path.exists(path) else os.path.join(root, 'usr/bin/busybox')


def is_older(made, source):
    return not os.path.exists(made) or os.path.getmtime(made) < os.path.getmtime(source)
