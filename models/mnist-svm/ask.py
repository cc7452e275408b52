"""Send the last digit to the served model, as the scikit-learn example of MLServer's docs does.

python models/mnist-svm/ask.py [http://host:port]
"""

import sys

import requests
from sklearn import datasets

host = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
model = f"{host}/v2/models/mnist-svm/versions/v0.1.0"

# Send data only to a server that has this model
try:
    metadata = requests.get(model, timeout=30).json()
except requests.RequestException as error:  # also raised if the body is not JSON
    sys.exit(f"{host} is not a server of this model ({type(error).__name__}): run `make serve`")
if not isinstance(metadata, dict) or metadata.get("name") != "mnist-svm":
    sys.exit(f"{host} is a server without the model mnist-svm v0.1.0: run `make serve`")

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

endpoint = f"{model}/infer"
response = requests.post(endpoint, json=inference_request, timeout=30)

print(f"POST {endpoint}\n{response.status_code} {response.text}")
if response.status_code != 200:
    sys.exit("the model returned no prediction")
for output in response.json()["outputs"]:
    print(f"{output['name']}: {', '.join(map(str, output['data']))}")
