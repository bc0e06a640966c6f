"""What the server does with the replies: judge each, weigh, combine, step."""
