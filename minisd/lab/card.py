"""The lines of the card: what each is called, what it expects, and what a failure usually means."""

from dataclasses import dataclass, field

from minisd.figures.svg import Curves
from minisd.lab.subject import EXACT


@dataclass(frozen=True)
class Line:
    """One line of the card: `value` was measured; `meaning` is what a failure usually means."""

    check: str
    verdict: str  # pass, fail or measured
    value: float
    expected: str
    meaning: str
    curves: Curves = field(default_factory=dict)  # for the page's plots


@dataclass(frozen=True)
class Check:
    """A line of the card, before it is measured."""

    title: str
    meaning: str  # what a failure usually means
    expected: str = "0"
    limit: float | None = 0.0  # the largest value that passes; None: it is only measured

    def line(
        self,
        value: float,
        passed: bool | None = None,
        expected: str | None = None,
        curves: Curves | None = None,
    ) -> Line:
        """The line with its value. `passed` replaces the comparison with the limit."""
        if passed is None and self.limit is not None:
            passed = value <= self.limit
        verdict = "measured" if passed is None else "pass" if passed else "fail"
        expected = self.expected if expected is None else expected
        return Line(self.title, verdict, float(value), expected, self.meaning, curves or {})


# ---- the contract, measured in contract.py -------------------------------------------------------

WRONG_STEPS = Check(
    "runs whose steps differ from the schedule's",
    "off by one: a step is skipped or repeated, or its noise levels are not the schedule's",
)
WRONG_REPORTS = Check(
    "Steps that misreport what was done",
    "x or eps of a Step is not what the network got or answered, or the next x is not x_next",
)
CHANGED_ARGUMENTS = Check(
    "runs that change their arguments",
    "in-place arithmetic: it overwrites the caller's latent, or slopes that are needed later",
)
CHANGED_DTYPE = Check(
    "dtypes that x does not keep",
    "fresh noise in float32 is added to x of another dtype: draw it with fresh_noise(x, generator)",
)
CALLS = Check(
    "network calls in 10 steps",
    "a step is treated as the first or the last one, or the answer of a call is not used",
    expected="any",
    limit=None,
)
LEVELS = Check(
    "calls outside the trained noise levels",
    "the network is called at sigma 0, or at a level that it was not trained on",
)
PASSED_SIGMA = Check(
    "noise present / sigma passed - 1",
    "the network gets another level than x's (t for t - 1), or up and down do not add up",
    expected="0 at every call",
    limit=EXACT,
)
LAST_SIGMA = Check(
    "noise at the end - last sigma",
    "the last step is missing or goes elsewhere: grain stays, or detail is lost",
    expected="0 on every schedule",
    limit=EXACT,
)
LOST_PICTURE = Check(
    "change of the picture under the noise",
    "a scale of the other convention, such as sqrt(abar), or weights that do not add up",
    limit=EXACT,
)
FOREIGN_NOISE = Check(
    "noise from other sources",
    "noise of the global generator, or not one normal latent of x's shape for each step",
    limit=EXACT,
)
NORMALS = Check(
    "normals drawn in 10 steps",
    "noise is drawn and not used, or in another shape: a seed gives another picture than elsewhere",
    expected="any",
    limit=None,
)
NORMALS_ETA_0 = Check("normals drawn with eta 0", "eta is not used")
ETA = Check(
    "fresh noise / that of DDPM",
    "another split of the noise: perhaps correct, but not the sampler of this name",
    expected="1 is DDPM's",
    limit=None,
)
GLOBAL_GENERATOR = Check(
    "uses of the global generator",
    "torch.randn_like, or randn without generator=: no seed gives this picture again",
)
OTHER_RUNS = Check(
    "results changed by other runs",
    "memory outside local variables: a global, a default argument, an attribute of the function",
)
NEIGHBOURS = Check(
    "influence of a neighbour in the batch",
    "a mean, norm or maximum over the whole batch where each picture needs its own",
)
OWN_NOISE = Check(
    "pictures of a batch with wrong noise",
    "for a list of seeds, generator is a list: fresh_noise(x, generator) draws each picture's own",
)
SHARED_NOISE = Check(
    "pictures of a batch with the same noise",
    "noise of the shape of one picture, or drawn with the same seed for each",
)
KNOWN_PICTURE = Check(
    "img2img: change of the known picture",
    "the noise added, the level of the first step and the noise removed differ",
    expected="< 0.002",
    limit=2e-3,
)
INSERTED_SIGMA = Check(
    "img2img: noise added / sigma passed - 1",
    "the timestep is rounded or another step's, or the input is not scaled to variance 1",
    limit=1e-4,  # x is float32, 1e-7 of 1, beside noise of 0.03
)
FIRST_STEP = Check(
    "img2img: runs where insertion and step 0 differ",
    "noise of another level than the first step starts from, or missing steps",
)

# ---- the method, measured in quality.py ----------------------------------------------------------

ORDER = Check(
    "order",
    "a wrong coefficient or sigma; 0 is a bias that stays, 1 instead of 2 a lost correction",
)
OWN_ORDER = Check(
    "order with its own first steps",
    "a multistep method that starts with Euler's step keeps that step's error, length^2",
    expected="2 if its memory starts empty",
    limit=None,
)
UNEVEN_ORDER = Check(
    "order of a step on an uneven schedule",
    "the lengths of earlier steps are missing from the weights, or upside down",
    limit=None,
)
CORRECTED_ORDER = Check(
    "order of a corrected step, uneven schedule",
    "the lengths of earlier steps are missing from the corrector's weights, or upside down",
)
DEGREES = Check(
    "degrees of steps 1 to 4, a digit each",
    "weights of another formula than the one named; -1: not even a constant is integrated exactly",
    expected="rising, 0 for Euler",
    limit=None,
)
DEFECT = Check(
    "what four uneven steps miss, x0 = lambda^2",
    "another formula than that of the name, or another coefficient, of the same order",
    expected="any",
    limit=None,
)
DISTANCE = Check(
    "W2 to Gaussian data, 20 steps",
    "results are too smooth or too noisy: detail is lost, or grain is added",
    expected="small",
    limit=None,
)
WEAK_ORDER = Check(
    "weak order",
    "up and down do not divide the noise correctly, so the spread of the results is off",
)
STRONG_ORDER = Check(
    "strong order on a Brownian path",
    "the noise of a step does not belong to its noise levels, so more steps lead elsewhere",
    expected="1 if the noise is that of an SDE",
    limit=None,
)
WEIGHTS = Check(
    "weights: sum - change of sigma",
    "a wrong coefficient: even perfectly predicted noise is not removed in full",
    limit=EXACT,
)
GAIN = Check(
    "largest noise gain",
    "errors of the network are amplified: grain in short img2img runs (see k_lms_guarded)",
    expected="1 is no amplification",
    limit=None,
)
MIDDLE = Check(
    "start in the middle - whole run",
    "steps counted from the schedule's start, a memory that is not empty, a leak between runs",
)
REFINEMENT = Check(
    "error with 80 steps / with 10",
    "more steps do not help: something is added at each, or the last step is wrong",
    expected="< 0.3 on every schedule",
    limit=0.3,
)
FLOAT32 = Check(
    "float32 - float64",
    "large numbers that cancel, such as exp(lambda)",
    expected="< 0.0001",
    limit=1e-4,
)
BFLOAT16 = Check(
    "bfloat16 - float64",
    "bfloat16 has 8 bits: noise of 14.6 is rounded to 0.06",
    expected="0.02 to 0.1",
    limit=None,
)
GUIDED_ERROR = Check(
    "guidance 7.5: error, 20 steps",
    "an unstable method: strong guidance gives burnt colours, and more steps help",
    limit=None,
)
BEST_GUIDANCE = Check(
    "highest guidance at which it beats k_euler",
    "high orders lose to Euler under strong guidance: a property of the method, not a bug",
    expected="20 is best",
    limit=None,
)
NOT_FINITE = Check(
    "guidance 1 to 20: results not finite",
    "a division by a step length or a slope that can be 0",
)
