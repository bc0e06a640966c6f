"""What a data owner does in a round: tasks, the model, rollouts, local training."""
