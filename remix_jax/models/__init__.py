"""Policy and critic: tokens in, numbers out."""
