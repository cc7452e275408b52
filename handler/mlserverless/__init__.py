"""MLServer's scikit-learn runtime as an AWS Lambda function."""

__version__ = "0.1.0"
