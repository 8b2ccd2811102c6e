"""Machines put back: their definitions made to fit another place, and a libvirt or a script."""
