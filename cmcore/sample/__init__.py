"""From noise to images: ODE solvers, few-step samplers, streams of samples and zero-shot editing."""
