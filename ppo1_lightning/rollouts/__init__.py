"""From simulators to minibatches."""
