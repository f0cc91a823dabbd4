"""Every import of ray, mlflow, torchvision, lpips and torch-fidelity lives in this package."""
