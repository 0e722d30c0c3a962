"""What runs the CPUs of a machine: one module each, named after the type (``qtest-accel`` is qtest_accel.py)."""
