"""The HTTP surface: OpenAI's API, health, metrics. It holds no tensor and schedules nothing."""
