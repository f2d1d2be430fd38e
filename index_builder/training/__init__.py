"""From a data set to a bundle: training, early stopping, checkpoints, export."""
