"""Composed estimators, each with the inputs that its metadata must list.

`COMPOSED` maps a name to a function that fits the estimator on the small data below, and the
names of the inputs that are strings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import (
    ColumnTransformer,
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - the next import needs it
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    LabelBinarizer,
    LabelEncoder,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC

ROWS = 24
CITIES = ["Oslo", "Rome", "Bern"] * 8
WORDS = ["good fine", "bad poor", "fine warm", "poor cold"] * 6
FRAME = pd.DataFrame(
    {
        "age": np.arange(ROWS) % 7 + 20.5,
        "fare": np.arange(ROWS) % 5 + 7.25,
        "city": CITIES,
        "grade": ["high", "low"] * 12,
        "visits": np.arange(ROWS) % 4 + 1,
        "member": [True, True, False] * 8,
        "text": WORDS,
    }
)
GAPS = FRAME.assign(city=pd.Series(["", *CITIES[1:]]).replace("", None))
NONES = FRAME.assign(city=pd.Series([None, *CITIES[1:]], dtype=object))
CATEGORIES = FRAME[["age", "city", "grade"]].assign(
    city=pd.Categorical(CITIES, ["Rome", "Oslo", "Bern"]), grade=pd.Categorical(FRAME.grade)
)
NUMBERS = FRAME[["age", "fare"]]
TABLE = FRAME[["age", "fare", "city"]]
MIXED = FRAME[["age", "city"]].to_numpy(object)
STRINGS = FRAME[["city", "grade"]].to_numpy(object)
YES_NO = np.array(["no", "yes"])[np.arange(ROWS) // 2 % 2]
THREE = np.array(["a", "b", "c"])[np.arange(ROWS) % 3]
AMOUNT = np.arange(ROWS) * 1.5 + 1
TWO_AMOUNTS = np.c_[AMOUNT, AMOUNT[::-1]]
TWO_LABELS = np.c_[np.arange(ROWS) % 2, np.arange(ROWS) // 2 % 2]


class Cleaner(TransformerMixin, BaseEstimator):
    """A transformer of a user's own, which records nothing of its columns but their names."""

    def fit(self, rows: Any, _: Any = None) -> Cleaner:
        """Record the names."""
        self.feature_names_in_ = np.asarray(rows.columns, object)
        self.n_features_in_ = len(rows.columns)
        return self

    def transform(self, rows: Any) -> Any:
        """Return the rows as they are."""
        return rows.copy()


class Wrapper(BaseEstimator):
    """A user's own class around a pipeline."""

    def __init__(self, pipeline: Any = None) -> None:
        self.pipeline = pipeline

    def fit(self, rows: Any, target: Any) -> Wrapper:
        """Fit the pipeline."""
        self.pipeline.fit(rows, target)
        return self

    def predict(self, rows: Any) -> Any:
        """Predict with the pipeline."""
        return self.pipeline.predict(rows)


def strip(frame: Any) -> Any:
    """Return the frame with its strings stripped."""
    return frame.assign(city=frame["city"].str.strip())


def same(values: Any) -> Any:
    """Return the values."""
    return values


def first_column(frame: Any) -> Any:
    """Return the first column as a Series."""
    return frame.iloc[:, 0]


def select_text(frame: Any) -> Any:
    """Return the column of texts without gaps."""
    return frame["text"].fillna("").str.lower()


def select_by_attribute(frame: Any) -> Any:
    """Return the column of texts."""
    return [text.strip() for text in frame.text]


def select_by_place(frame: Any) -> Any:
    """Return the values of the column of texts."""
    return np.ravel(frame.iloc[:, 1].to_numpy())


def join_columns(frame: Any) -> Any:
    """Return two columns of strings as one."""
    return frame.loc[:, "city"] + " " + frame.loc[:, "text"]


class ColumnSelector(TransformerMixin, BaseEstimator):
    """A user's own selector of a column, as many tutorials have it."""

    def __init__(self, key: Any = "text") -> None:
        self.key = key

    def fit(self, _rows: Any, _: Any = None) -> ColumnSelector:
        """Learn nothing."""
        return self

    def transform(self, rows: Any) -> Any:
        """Return the column."""
        return rows[self.key]


def is_city(frame: Any) -> list[str]:
    """Return the names of the columns of strings."""
    return [name for name in frame.columns if name == "city"]


def encoder() -> Any:
    """Return the usual preparation of a string column."""
    return make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )


def prepared(*more: Any, text: Any = ("city",), last: Any = None) -> Any:
    """Return a pipeline over TABLE: numbers scaled, the city encoded."""
    columns = make_column_transformer(
        (StandardScaler(), ["age", "fare"]), (encoder(), list(text)), *more
    )
    return make_pipeline(columns, last or LogisticRegression())


def transformer(number: Any, text: Any, encode: Any = None) -> Any:
    """Return a pipeline whose columns are selected in the given ways."""
    encode = encode or OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("number", StandardScaler(), number), ("text", encode, text)])
    return make_pipeline(columns, LogisticRegression())


def documents(vectorizer: Any = None) -> Any:
    """Return a text classifier."""
    return make_pipeline(vectorizer or TfidfVectorizer(), LogisticRegression())


def nested() -> Any:
    """Return column transformers within column transformers."""
    inner = ColumnTransformer([("c", encoder(), [-1]), ("n", "passthrough", [0])])
    outer = ColumnTransformer([("m", inner, ["fare", "city"])], remainder=MinMaxScaler())
    return make_pipeline(outer, LogisticRegression())


def boosted(**settings: Any) -> Any:
    """Return a small HistGradientBoostingClassifier."""
    return HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=1, **settings)


def boosted_behind_columns() -> Any:
    """Return one that gets its categories through a column transformer."""
    columns = make_column_transformer(
        (StandardScaler(), ["age"]), remainder="passthrough", verbose_feature_names_out=False
    )
    return make_pipeline(columns.set_output(transform="pandas"), boosted())


def pairs(estimator: Any) -> list[tuple[str, Any]]:
    """Return two named copies, as ensembles take them."""
    return [("one", estimator), ("two", estimator)]


GRID: dict[str, list[Any]] = {"logisticregression__C": [0.5, 1.0]}
DOCUMENT = {"input-0"}
CITY = {"city"}
Fit = Callable[[], Any]

COMPOSED: dict[str, tuple[Fit, set[str]]] = {
    # columns of a DataFrame
    "imputed and encoded": (lambda: prepared().fit(GAPS[TABLE.columns], YES_NO), CITY),
    "imputed and encoded without columns": (
        lambda: make_pipeline(encoder(), LogisticRegression()).fit(GAPS[["city"]], YES_NO),
        CITY,
    ),
    "constant imputed": (
        lambda: make_pipeline(
            SimpleImputer(strategy="constant", fill_value="none"), OneHotEncoder()
        ).fit(GAPS[["city"]]),
        CITY,
    ),
    "strings imputed only": (
        lambda: SimpleImputer(strategy="most_frequent").fit(GAPS[["city", "grade"]]),
        {"city", "grade"},
    ),
    "none among categories": (
        lambda: transformer(["age"], ["city"]).fit(NONES[["age", "city"]], YES_NO),
        CITY,
    ),
    "slice and numbers": (
        lambda: transformer(slice(0, 2), [2]).fit(TABLE, YES_NO),
        CITY,
    ),
    "slice of names": (
        lambda: transformer(slice("age", "fare"), ["city"]).fit(TABLE, YES_NO),
        CITY,
    ),
    "open slice of names": (
        lambda: transformer(slice(None, "fare"), slice("city", None)).fit(TABLE, YES_NO),
        CITY,
    ),
    "mask": (
        lambda: transformer([True, True, False], np.array([False, False, True])).fit(TABLE, YES_NO),
        CITY,
    ),
    "negative numbers": (lambda: transformer([-3, -2], [-1]).fit(TABLE, YES_NO), CITY),
    "selectors by dtype": (
        lambda: transformer(
            make_column_selector(dtype_include="number"),
            make_column_selector(dtype_exclude="number"),
        ).fit(TABLE, YES_NO),
        CITY,
    ),
    "callable": (lambda: transformer(["age"], is_city).fit(TABLE, YES_NO), CITY),
    "index of names": (
        lambda: transformer(TABLE.columns[:2], TABLE.columns[2:]).fit(TABLE, YES_NO),
        CITY,
    ),
    "one name for a vectorizer": (
        lambda: transformer(["age"], "text", CountVectorizer()).fit(FRAME[["text", "age"]], YES_NO),
        {"text"},
    ),
    "one number for a vectorizer": (
        lambda: transformer([1], 0, HashingVectorizer(n_features=8)).fit(
            FRAME[["text", "age"]], YES_NO
        ),
        {"text"},
    ),
    "nested column transformers": (lambda: nested().fit(TABLE, YES_NO), CITY),
    "remainder encoder": (
        lambda: make_pipeline(
            make_column_transformer((StandardScaler(), ["age", "fare"]), remainder=encoder()),
            LogisticRegression(),
        ).fit(TABLE, YES_NO),
        CITY,
    ),
    "union of column transformers": (
        lambda: make_pipeline(
            FeatureUnion(
                [
                    ("c", make_column_transformer((OneHotEncoder(), ["city"]))),
                    ("n", make_column_transformer((RobustScaler(), ["age"]))),
                ]
            ),
            LogisticRegression(),
        ).fit(TABLE, YES_NO),
        CITY,
    ),
    "passthrough steps": (
        lambda: Pipeline(
            [("a", "passthrough"), ("b", None), ("c", prepared()), ("d", "passthrough")][:3]
        ).fit(TABLE, YES_NO),
        CITY,
    ),
    "cleaned by a function": (
        lambda: make_pipeline(FunctionTransformer(strip), prepared()).fit(TABLE, YES_NO),
        CITY,
    ),
    "cleaned by a class": (
        lambda: make_pipeline(Cleaner(), prepared()).fit(TABLE, YES_NO),
        CITY,
    ),
    "wrapped by a class": (lambda: Wrapper(prepared()).fit(TABLE, YES_NO), CITY),
    "ordinal encoder": (
        lambda: make_pipeline(
            make_column_transformer((OrdinalEncoder(), ["city", "grade"]), remainder="passthrough"),
            boosted(categorical_features=[0, 1]),
        ).fit(FRAME[["age", "city", "grade"]], YES_NO),
        {"city", "grade"},
    ),
    "target encoder": (
        lambda: make_pipeline(TargetEncoder(cv=2), LogisticRegression()).fit(
            FRAME[["city", "grade"]], YES_NO
        ),
        {"city", "grade"},
    ),
    "numbers as categories": (
        lambda: transformer(["age"], ["visits", "member"]).fit(
            FRAME[["age", "visits", "member"]], YES_NO
        ),
        set(),
    ),
    "category dtype": (lambda: boosted().fit(CATEGORIES, YES_NO), {"city", "grade"}),
    "category dtype behind columns": (
        lambda: boosted_behind_columns().fit(CATEGORIES, YES_NO),
        {"city", "grade"},
    ),
    "strings as categories": (
        lambda: boosted(categorical_features=["city"]).fit(TABLE, YES_NO),
        CITY,
    ),
    "selected columns": (
        lambda: make_pipeline(SimpleImputer(), SelectKBest(k=1), LinearRegression()).fit(
            NUMBERS.replace(20.5, np.nan), AMOUNT
        ),
        set(),
    ),
    "neighbours impute": (
        lambda: make_pipeline(KNNImputer(), Ridge()).fit(NUMBERS.replace(20.5, np.nan), AMOUNT),
        set(),
    ),
    # estimators around pipelines
    "grid search": (lambda: GridSearchCV(prepared(), GRID, cv=2).fit(TABLE, YES_NO), CITY),
    "random search": (
        lambda: RandomizedSearchCV(prepared(), GRID, n_iter=1, cv=2, random_state=0).fit(
            TABLE, YES_NO
        ),
        CITY,
    ),
    "halving search": (
        lambda: HalvingGridSearchCV(prepared(), GRID, cv=2, random_state=0).fit(TABLE, YES_NO),
        CITY,
    ),
    "search in a search": (
        lambda: GridSearchCV(GridSearchCV(prepared(), GRID, cv=2), {"cv": [2]}, cv=2).fit(
            TABLE, YES_NO
        ),
        CITY,
    ),
    "calibrated": (lambda: CalibratedClassifierCV(prepared(), cv=2).fit(TABLE, YES_NO), CITY),
    "stacked": (
        lambda: StackingClassifier(pairs(prepared()), cv=2).fit(TABLE, YES_NO),
        CITY,
    ),
    "predictions stacked": (
        lambda: StackingClassifier(pairs(prepared()), cv=2, stack_method="predict").fit(
            TABLE, YES_NO
        ),
        {"city"},
    ),
    "stacked regressors": (
        lambda: StackingRegressor(pairs(prepared(last=Ridge())), cv=2).fit(TABLE, AMOUNT),
        CITY,
    ),
    "voting": (
        lambda: VotingClassifier(pairs(prepared()), voting="soft").fit(TABLE, THREE),
        CITY,
    ),
    "voting in three dimensions": (
        lambda: VotingClassifier(pairs(prepared()), voting="soft", flatten_transform=False).fit(
            TABLE, THREE
        ),
        CITY,
    ),
    "voting regressors": (
        lambda: VotingRegressor(pairs(prepared(last=Ridge()))).fit(TABLE, AMOUNT),
        CITY,
    ),
    "several targets": (
        lambda: MultiOutputClassifier(prepared()).fit(TABLE, TWO_LABELS),
        CITY,
    ),
    "several targets of other sizes": (
        lambda: MultiOutputClassifier(prepared()).fit(
            TABLE, np.c_[np.arange(ROWS) % 3, np.arange(ROWS) % 2]
        ),
        CITY,
    ),
    "several amounts": (
        lambda: MultiOutputRegressor(prepared(last=Ridge())).fit(TABLE, TWO_AMOUNTS),
        CITY,
    ),
    "one against the rest": (
        lambda: OneVsRestClassifier(prepared()).fit(TABLE, THREE),
        CITY,
    ),
    "one against one": (
        lambda: OneVsOneClassifier(LogisticRegression()).fit(NUMBERS, THREE),
        set(),
    ),
    "output codes": (
        lambda: OutputCodeClassifier(LogisticRegression(), random_state=0).fit(NUMBERS, THREE),
        set(),
    ),
    "tuned threshold": (
        lambda: TunedThresholdClassifierCV(
            prepared(), cv=2, scoring="accuracy", random_state=0
        ).fit(TABLE, YES_NO),
        CITY,
    ),
    "fixed threshold": (
        lambda: FixedThresholdClassifier(prepared(), threshold=0.4, pos_label="yes").fit(
            TABLE, YES_NO
        ),
        CITY,
    ),
    "transformed target": (
        lambda: TransformedTargetRegressor(
            prepared(last=Ridge()), func=np.log, inverse_func=np.exp
        ).fit(TABLE, AMOUNT),
        CITY,
    ),
    "two transformed targets": (
        lambda: TransformedTargetRegressor(
            prepared(last=Ridge()), transformer=StandardScaler()
        ).fit(TABLE, TWO_AMOUNTS),
        CITY,
    ),
    "self training": (
        lambda: SelfTrainingClassifier(LogisticRegression()).fit(
            NUMBERS, [-1, -1, *(np.arange(ROWS) % 2)[2:]]
        ),
        set(),
    ),
    "frozen": (lambda: FrozenEstimator(prepared().fit(TABLE, YES_NO)), CITY),
    "calibrated and frozen": (
        lambda: CalibratedClassifierCV(FrozenEstimator(prepared().fit(TABLE, YES_NO))).fit(
            TABLE, YES_NO
        ),
        CITY,
    ),
    "selected by a model": (
        lambda: make_pipeline(
            SelectFromModel(RandomForestRegressor(2, random_state=0)), LinearRegression()
        ).fit(NUMBERS, AMOUNT),
        set(),
    ),
    "eliminated": (
        lambda: RFE(LogisticRegression(), n_features_to_select=1).fit(NUMBERS, YES_NO),
        set(),
    ),
    "boosted ensemble": (
        lambda: AdaBoostClassifier(LogisticRegression(), n_estimators=2).fit(NUMBERS, YES_NO),
        set(),
    ),
    # documents
    "documents": (lambda: documents().fit(WORDS, YES_NO), DOCUMENT),
    "documents searched": (
        lambda: GridSearchCV(documents(), GRID, cv=2).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents calibrated": (
        lambda: CalibratedClassifierCV(documents(), cv=2).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents stacked": (
        lambda: StackingClassifier(pairs(documents()), cv=2).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents voted": (
        lambda: VotingClassifier(pairs(documents(HashingVectorizer(n_features=16)))).fit(
            WORDS, YES_NO
        ),
        DOCUMENT,
    ),
    "documents of two vectorizers": (
        lambda: make_pipeline(
            FeatureUnion([("w", CountVectorizer()), ("c", CountVectorizer(analyzer="char"))]),
            MultinomialNB(),
        ).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents behind a function": (
        lambda: make_pipeline(FunctionTransformer(same), documents()).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents behind passthrough": (
        lambda: Pipeline([("a", "passthrough"), ("b", documents())]).fit(WORDS, YES_NO),
        DOCUMENT,
    ),
    "documents of one column": (
        lambda: make_pipeline(FunctionTransformer(first_column), documents()).fit(
            FRAME[["text"]], YES_NO
        ),
        {"text"},
    ),
    "documents selected by a function": (
        lambda: make_pipeline(FunctionTransformer(select_text), documents()).fit(
            FRAME[["age", "text"]], YES_NO
        ),
        {"text"},
    ),
    "documents selected by attribute": (
        lambda: make_pipeline(
            FunctionTransformer(select_by_attribute), TfidfVectorizer(), LogisticRegression()
        ).fit(FRAME[["age", "text"]], YES_NO),
        {"text"},
    ),
    "documents joined": (
        lambda: make_pipeline(
            FunctionTransformer(join_columns), None, TfidfVectorizer(), LogisticRegression()
        ).fit(FRAME[["age", "city", "text"]], YES_NO),
        {"city", "text"},
    ),
    "documents and numbers selected": (
        lambda: make_pipeline(
            FeatureUnion(
                [
                    (
                        "text",
                        make_pipeline(FunctionTransformer(select_by_place), CountVectorizer()),
                    ),
                    ("number", make_column_transformer((StandardScaler(), ["age"]))),
                ]
            ),
            LogisticRegression(),
        ).fit(FRAME[["age", "text"]], YES_NO),
        {"text"},
    ),
    "documents selected by a class": (
        lambda: make_pipeline(
            FeatureUnion(
                [
                    ("number", make_column_transformer((StandardScaler(), ["age"]))),
                    ("text", make_pipeline(ColumnSelector(), CountVectorizer())),
                ]
            ),
            LogisticRegression(),
        ).fit(FRAME[["age", "text"]], YES_NO),
        {"text"},
    ),
    "columns selected by a class": (
        lambda: make_pipeline(
            FeatureUnion(
                [
                    ("text", make_pipeline(ColumnSelector(), CountVectorizer())),
                    ("number", make_pipeline(ColumnSelector(["age"]), StandardScaler())),
                ]
            ),
            LogisticRegression(),
        ).fit(FRAME[["age", "text"]], YES_NO),
        {"text"},
    ),
    "a column selected by a class": (
        lambda: make_pipeline(ColumnSelector(), CountVectorizer(), LogisticRegression()).fit(
            FRAME[["age", "text"]], YES_NO
        ),
        {"text"},
    ),
    "a column selected by a class before the estimator with names": (
        lambda: make_pipeline(
            FeatureUnion(
                [
                    ("text", make_pipeline(ColumnSelector(), CountVectorizer())),
                    ("number", make_column_transformer((StandardScaler(), ["age"]))),
                ]
            ),
            LogisticRegression(),
        ).fit(FRAME[["age", "text"]], YES_NO),
        {"text"},
    ),
    "words counted": (lambda: CountVectorizer().fit(WORDS), DOCUMENT),
    # arrays
    "strings of an array": (
        lambda: make_pipeline(OneHotEncoder(), LogisticRegression()).fit(STRINGS, YES_NO),
        DOCUMENT,
    ),
    "strings of an array imputed": (
        lambda: make_pipeline(encoder(), LogisticRegression()).fit(STRINGS, YES_NO),
        {"input-0", "input-1"},
    ),
    "strings and numbers of an array": (
        lambda: transformer([0], [1]).fit(MIXED, YES_NO),
        {"input-1"},
    ),
    "whole numbers of an array": (
        lambda: OneHotEncoder().fit(FRAME[["visits"]].to_numpy()),
        set(),
    ),
    "bagged columns of an array": (
        lambda: BaggingClassifier(
            make_pipeline(StandardScaler(), LogisticRegression()),
            n_estimators=2,
            random_state=0,
        ).fit(NUMBERS.to_numpy(), YES_NO),
        set(),
    ),
    "binned": (
        lambda: KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf").fit(
            NUMBERS.to_numpy()
        ),
        set(),
    ),
    "splines that end where the data did": (
        lambda: SplineTransformer(extrapolation="error").fit(NUMBERS.to_numpy()),
        set(),
    ),
    "positive numbers only": (
        lambda: make_pipeline(PowerTransformer("box-cox"), Ridge()).fit(NUMBERS, AMOUNT),
        set(),
    ),
    "polynomial": (
        lambda: make_pipeline(PolynomialFeatures(), LinearRegression()).fit(
            NUMBERS.to_numpy(), TWO_AMOUNTS
        ),
        set(),
    ),
    "labels of several targets": (
        lambda: ClassifierChain(LogisticRegression()).fit(NUMBERS.to_numpy(), TWO_LABELS),
        set(),
    ),
    "amounts in a chain": (
        lambda: RegressorChain(Ridge()).fit(NUMBERS.to_numpy(), TWO_AMOUNTS),
        set(),
    ),
    "several labels": (
        lambda: OneVsRestClassifier(LogisticRegression()).fit(NUMBERS.to_numpy(), TWO_LABELS),
        set(),
    ),
    "several labels of a network": (
        lambda: MLPClassifier([2], max_iter=5, random_state=0).fit(NUMBERS.to_numpy(), TWO_LABELS),
        set(),
    ),
    "several labels of neighbours": (
        lambda: KNeighborsClassifier(3).fit(NUMBERS.to_numpy(), TWO_LABELS),
        set(),
    ),
    "several labels of a forest": (
        lambda: RandomForestClassifier(2, random_state=0).fit(NUMBERS.to_numpy(), TWO_LABELS),
        set(),
    ),
    "pairs of classes": (
        lambda: SVC(decision_function_shape="ovo").fit(NUMBERS.to_numpy(), np.arange(ROWS) % 4),
        set(),
    ),
    "labels encoded": (lambda: LabelEncoder().fit(YES_NO), DOCUMENT),
    "labels binarized": (lambda: LabelBinarizer().fit(THREE), DOCUMENT),
    "numeric labels encoded": (lambda: LabelEncoder().fit([3, 5, 7]), set()),
}
