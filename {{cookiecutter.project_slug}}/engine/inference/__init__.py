"""What comes after training: exported models, and the predictions of predict.py."""
