"""Train the digits classifier of MLServer's scikit-learn example, beside this file.

Source: https://mlserver.readthedocs.io/en/stable/examples/sklearn/README.html
"""

from pathlib import Path

import joblib
from sklearn import datasets, svm
from sklearn.model_selection import train_test_split

# The digits dataset
digits = datasets.load_digits()

# To apply a classifier on this data, we need to flatten the image, to
# turn the data in a (samples, feature) matrix:
n_samples = len(digits.images)
data = digits.images.reshape((n_samples, -1))

# Create a classifier: a support vector classifier
classifier = svm.SVC(gamma=0.001)

# Split data into train and test subsets
X_train, X_test, y_train, y_test = train_test_split(
    data, digits.target, test_size=0.5, shuffle=False
)

# We learn the digits on the first half of the digits
classifier.fit(X_train, y_train)

joblib.dump(classifier, Path(__file__).parent / "mnist-svm.joblib")
