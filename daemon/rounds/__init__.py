"""One round from outside: schedule, launch, follow, resume, inherit."""
