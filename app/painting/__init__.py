"""Whatever paints for the studio: this process, a process of its own, or ZeroGPU."""
