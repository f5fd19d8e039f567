"""What the training script draws on: targets, metrics, figures and checkpoints."""
