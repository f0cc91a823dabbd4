"""The budget of a workload before any compute: operations, memory, time and money."""
