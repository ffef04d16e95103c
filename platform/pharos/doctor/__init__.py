"""What `platform/doctor.py` looks at before money is spent: each check is a line, has an end, and leaves nothing."""
