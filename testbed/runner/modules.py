# SPDX-License-Identifier: GPL-2.0
"""A kernel's modules: where they lie, and in which order they are loaded.

A kernel that was built here has few, beside it in its objects folder, and whatever else
it needs is built in.  A distribution's has nearly everything as modules, compressed, in
a folder of its own.
"""

import gzip
import lzma
import os
import re
import struct
import subprocess
from typing import NamedTuple

SUFFIX = re.compile(r'\.ko(\.xz|\.zst|\.gz)?$')
# Of a bzImage: where it says that it is one, and where in it the kernel's release is
BZIMAGE_MAGIC = (0x202, b'HdrS')
BZIMAGE_RELEASE = 0x20e


class ModulesError(Exception):
    pass


class Module(NamedTuple):
    file: str           # its name in the image, without .ko
    data: bytes
    depends: list
    vermagic: str       # the kernel that it is for
    path: str


def normal(name):
    """Modules have a _ where their files may have a -."""
    return name.replace('-', '_')


def name_of(path):
    return SUFFIX.sub('', os.path.basename(path))


def is_file(text):
    """Is this module of the command line a file, and not the name of one?"""
    return '/' in text or SUFFIX.search(text) is not None


def unpacked(path):
    try:
        with open(path, 'rb') as f:
            data = f.read()
        if path.endswith('.xz'):
            return lzma.decompress(data)
        if path.endswith('.gz'):
            return gzip.decompress(data)
        if path.endswith('.zst'):
            return subprocess.run(['zstd', '-dc'], input=data, capture_output=True, check=True).stdout
        return data
    except (OSError, EOFError, lzma.LZMAError, subprocess.CalledProcessError) as error:
        raise ModulesError(f'cannot read {path}: {error}') from None


def read(path):
    data = unpacked(path)
    # .modinfo is a sequence of TAG=VALUE, each with a 0 at its end.
    fields = dict(re.findall(rb'(?<=\0)(depends|vermagic)=([^\0]*)(?=\0)', data))
    if not data.startswith(b'\x7fELF') or len(fields) != 2:
        raise ModulesError(f'{path} is not a module')
    depends = fields[b'depends'].decode()
    return Module(name_of(path), data, depends.split(',') if depends else [],
                  fields[b'vermagic'].decode().strip(), path)


def release_of(kernel):
    """The release of a bzImage, as `uname -r` has it; None for another kernel."""
    with open(kernel, 'rb') as f:
        f.seek(BZIMAGE_MAGIC[0])
        if f.read(len(BZIMAGE_MAGIC[1])) != BZIMAGE_MAGIC[1]:
            return None
        f.seek(BZIMAGE_RELEASE)
        f.seek(0x200 + struct.unpack('<H', f.read(2))[0])
        return f.read(128).split(b' ')[0].decode(errors='replace')


def folder_of(kernel, release):
    """Where a distribution puts the modules of this kernel, if they are there."""
    kernel = os.path.realpath(kernel)
    here = os.path.dirname(kernel)
    root = os.path.dirname(here)
    for folder in (here, f'{root}/lib/modules/{release}', f'{root}/usr/lib/modules/{release}'):
        if os.path.isdir(os.path.join(folder, 'kernel')):
            return folder
    raise ModulesError(f'no modules of {kernel} ({release}): name their folder with --modules DIR')


class Modules:
    """Those of one kernel."""

    def __init__(self, kernel, folder=None):
        self.kernel = kernel
        self.release = release_of(kernel)
        # Is all that the kernel can do either built in or among the modules?
        self.complete = bool(folder or self.release)
        if self.complete:
            self.folder = folder or folder_of(kernel, self.release)
            files = [os.path.join(at, name) for at, _, names in os.walk(self.folder) for name in names]
            # As depmod: what was built for this machine comes before what came with it.
            files.sort(key=lambda path: (not path.startswith(f'{self.folder}/updates/'), path))
        else:
            self.folder = os.path.dirname(os.path.realpath(kernel))
            files = [os.path.join(self.folder, re.sub(r'\.o$', '.ko', line)) for line in self._list('modules.order')]
        self.files = {}
        for path in files:
            if SUFFIX.search(path):
                self.files.setdefault(normal(name_of(path)), path)
        if folder and not self.files:
            raise ModulesError(f'no modules in {folder}')
        self.builtin = {normal(name_of(line)) for line in self._list('modules.builtin')}
        self.read = {}

    def _list(self, name):
        try:
            with open(os.path.join(self.folder, name), encoding='utf-8') as f:
                return f.read().split()
        except FileNotFoundError:
            return []

    def take(self, path):
        """A file that is loaded instead of the module of its name."""
        self.read[normal(name_of(path))] = self._checked(read(path))

    def _checked(self, module):
        """Is it for this kernel?  The kernel would not say so that clearly."""
        other = self.files.get(normal(module.file))
        if module.path != other and other:
            wanted = read(other).vermagic
            if module.vermagic != wanted:
                raise ModulesError(f"{module.path} is for a kernel '{module.vermagic}', not for '{wanted}'")
        elif self.release and module.vermagic.split()[0] != self.release:
            raise ModulesError(f"{module.path} is for {module.vermagic.split()[0]}, the kernel is {self.release}")
        return module

    def _module(self, name):
        if name not in self.read:
            self.read[name] = self._checked(read(self.files[name]))
        return self.read[name]

    def in_order(self, names, required, done=()):
        """The modules, each behind those that it needs, but for those that are done.

        A name that is built in has none.  One that is nowhere is an error if required.
        """
        order, seen = [], {normal(module.file) for module in done}

        def add(name, required, by=''):
            name = normal(name)
            if name in seen:
                return
            seen.add(name)
            if name in self.files or name in self.read:
                module = self._module(name)
                for other in module.depends:
                    add(other, True, f', which {name} needs')
                order.append(module)
            elif required and name not in self.builtin:
                raise ModulesError(f'no module {name} in {self.folder}{by}')
        for name in names:
            add(name, required)
        return order
