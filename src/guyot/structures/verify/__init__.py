"""Numerical checks that a cut network equals the masked one."""
