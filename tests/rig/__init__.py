"""The test rig: real QEMU processes, a real Linux guest, and judges of what they leave.

Start with `daemon.StorageDaemon` (a guest's disks without a guest, 0.1 s), `machine.Machine`
(QEMU with devices, no guest) or `machine.GuestMachine` (a booted Linux whose writes can be
judged, 4 s). `images` makes and compares disks, `consistency` judges the guest's.
"""
