# SPDX-License-Identifier: GPL-2.0
"""The device tree of QEMU's machine of arm64, without what it says of coherent DMA."""

import os
import struct
import subprocess
import tempfile

MAGIC = 0xd00dfeed
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
COHERENT = b'dma-coherent\0'


def dump(command, fds):
    """The tree that QEMU makes for its machine by command, in which it finds the open files fds."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'dtb')
        at = command.index('-machine') + 1
        subprocess.run([*command[:at], f'{command[at]},dumpdtb={path}', *command[at + 1:]],
                       check=True, capture_output=True, pass_fds=fds)
        with open(path, 'rb') as f:
            return f.read()


def without_coherence(tree):
    """The tree with each property "dma-coherent" overwritten, and without the space at its end."""
    magic, _, structs, strings, *_, strings_size, structs_size = struct.unpack('>10I', tree[:40])
    if magic != MAGIC:
        raise ValueError('QEMU has written no device tree')
    words = bytearray(tree)
    name = tree.index(COHERENT, strings) - strings
    at, removed = structs, 0
    while True:
        token, = struct.unpack_from('>I', words, at)
        if token == END:
            break
        if token == BEGIN_NODE:
            at = (words.index(0, at + 4) + 4) & ~3
        elif token == PROP:
            size, which = struct.unpack_from('>2I', words, at + 4)
            if which == name:
                struct.pack_into('>3I', words, at, NOP, NOP, NOP)
                removed += 1
            at += 12 + (size + 3 & ~3)
        else:
            at += 4
    if not removed:
        raise ValueError('no device of the machine is coherent')
    end = max(structs + structs_size, strings + strings_size)
    struct.pack_into('>I', words, 4, end)
    return bytes(words[:end])
