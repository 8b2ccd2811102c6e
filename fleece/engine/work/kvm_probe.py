"""A program that has KVM run one instruction; exit code 0: it did. Standard library only.

It reads the path of KVM's device from standard input.

That a virtual machine can be made proves little: where KVM is itself emulated, making one can
succeed and running it fail or hang. ioctl numbers and layouts are those of <linux/kvm.h> on x86_64.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84

_SREGS = 312
_REGS = struct.Struct("<18Q")
_EXIT_HLT = 5
_EXIT_REASON = 8  # in struct kvm_run
_HLT = b"\xf4"
_PAGE = 4096


def runs(path: str) -> bool:
    """Whether the one instruction, `hlt` at address 0 in real mode, was run.

    Raises:
        OSError: KVM refuses something.
    """
    kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _PAGE)
    memory[: len(_HLT)] = _HLT
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _PAGE, place))
    processor = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    state = mmap.mmap(processor, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    special = bytearray(_SREGS)
    fcntl.ioctl(processor, _GET_SREGS, special)
    struct.pack_into("<Q4xH", special, 0, 0, 0)  # base and selector of the code segment
    fcntl.ioctl(processor, _SET_SREGS, bytes(special))
    registers = [0] * 18
    registers[17] = 2  # the flags' one bit that is always set; the instruction pointer is 0
    fcntl.ioctl(processor, _SET_REGS, _REGS.pack(*registers))
    fcntl.ioctl(processor, _RUN, 0)
    (reason,) = struct.unpack_from("<I", state, _EXIT_REASON)
    return bool(reason == _EXIT_HLT)


if __name__ == "__main__":
    try:
        if not runs(os.fsdecode(os.read(0, _PAGE))):
            raise SystemExit("it did not run an instruction")
    except OSError as error:
        raise SystemExit(error.strerror or str(error)) from error
