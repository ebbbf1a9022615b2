"""Measurements that anyone can rerun, each as `python -m bench.NAME`."""
