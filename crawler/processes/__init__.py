"""What ties worker and frontier to Celery, RabbitMQ and systemd: one module for each process of a fleet."""
