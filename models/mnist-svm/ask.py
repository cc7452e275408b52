"""Ask the served model for the last digit, as the scikit-learn example of MLServer's docs does.

python models/mnist-svm/ask.py [http://host:port]
"""

import sys
import time

import requests
from sklearn import datasets

host = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"

# a server that was started with this script needs a moment
for _ in range(300):
    try:
        requests.get(f"{host}/v2/health/live", timeout=5)
        break
    except requests.ConnectionError:
        time.sleep(0.1)

digits = datasets.load_digits()
x_0 = digits.images[-1:].reshape(1, -1)
inference_request = {
    "inputs": [
        {
            "name": "predict",
            "shape": list(x_0.shape),
            "datatype": "FP32",
            "data": x_0.tolist(),
        }
    ]
}

endpoint = f"{host}/v2/models/mnist-svm/versions/v0.1.0/infer"
response = requests.post(endpoint, json=inference_request, timeout=30)

print(f"POST {endpoint}\n{response.status_code} {response.text}")
print(f"the digit is {digits.target[-1]}")
