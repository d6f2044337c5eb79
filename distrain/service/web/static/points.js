/** What charts compute of the points of a curve, and how they write it. */
"use strict";

const points = (() => {
  /** Return the exponential moving average without the bias of its start; values that are not finite are skipped. */
  function smooth(values, weight) {
    if (!(weight > 0)) return values;
    let sum = 0;
    let norm = 0;
    return values.map((value) => {
      if (!Number.isFinite(value)) return null;
      sum = weight * sum + (1 - weight) * value;
      norm = weight * norm + (1 - weight);
      return sum / norm;
    });
  }

  /** Return the index of the point nearest to x; -1 where there is none. */
  function nearest(xs, x) {
    let best = -1;
    xs.forEach((value, index) => {
      if (value !== null && (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x))) best = index;
    });
    return best;
  }

  /** Return the newest and the best point of a curve; the best one is exact, because buckets keep both ends. */
  function extremes(curve, better) {
    const ends = better === "higher" ? curve.max : curve.min;
    let best = -1;
    ends.forEach((value, index) => {
      if (!Number.isFinite(value)) return;
      if (best < 0 || (better === "higher" ? value > ends[best] : value < ends[best])) best = index;
    });
    return { newest: curve.step.length - 1, best, value: ends[best] };
  }

  /** Return a value as text: all digits of one that was recorded, six of one that was computed. */
  function show(value, isExact = true) {
    if (value === null || value === undefined || Number.isNaN(value)) return "not finite";
    return isExact ? String(value) : String(Number(value.toPrecision(6)));
  }

  /** Return a duration as text. */
  function showSeconds(seconds) {
    const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
    if (h) return `${h} h ${m} min`;
    return m ? `${m} min ${Math.floor(s)} s` : `${Number(s.toFixed(1))} s`;
  }

  /** Return the steps of a point of a curve as text. */
  function steps(curve, index) {
    const from = index ? curve.step[index - 1] + 1 : curve.step[0];
    return curve.count[index] > 1 && from < curve.step[index]
      ? `steps ${from} to ${curve.step[index]}`
      : `step ${curve.step[index]}`;
  }

  return { smooth, nearest, extremes, show, showSeconds, steps };
})();
