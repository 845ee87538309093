"""Measuring norms on this machine: the case table, and the contenders in processes of their own."""
