//! The chart of the growth page: both axes in decades, so that what stays the same is level, and what
//! takes ten times as long for ten times as many orders rises by one step a step.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Grown;
use super::costs::{COSTS, Cost, Kind};
use crate::table::number;

const SIZE: (u32, u32) = (1_080, 480);

/// What is left for the names beside the lines, in pixels.
const NAMES: u32 = 190;

/// Between the names of two lines, in pixels, at least.
const NAME_HEIGHT: i32 = 16;

/// Colours that also those tell apart who see few (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(190, 190, 190),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// The chart as SVG.
pub fn draw(grown: &[Grown]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let all = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        all.fill(&WHITE)?;
        let (left, right) = all.split_horizontally(SIZE.0 / 2);
        panel(
            &all,
            &left,
            "one request or pass, ms",
            &lines(grown, Kind::Single),
        )?;
        panel(
            &all,
            &right,
            "over all orders, s",
            &lines(grown, Kind::Whole),
        )?;
        all.present()?;
    }
    svg.push('\n');
    Ok(svg)
}

/// The lines of one kind: their names, and their points.
fn lines(grown: &[Grown], kind: Kind) -> Vec<(&'static str, Points)> {
    let of_kind = |(_, cost): &(usize, &Cost)| cost.kind == kind;
    let costs = COSTS.iter().enumerate().filter(of_kind);
    costs
        .map(|(at, cost)| {
            let point = |one: &Grown| (one.orders as f64, one.figures[at]);
            (cost.what, grown.iter().map(point).collect())
        })
        .collect()
}

fn panel(
    all: &Area<'_>,
    area: &Area<'_>,
    title: &str,
    lines: &[(&'static str, Points)],
) -> anyhow::Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let (xs, ys) = (
        decades(points().map(|p| p.0)),
        decades(points().map(|p| p.1)),
    );
    let count = |(low, high): (f64, f64)| (high / low).log10().round() as usize + 1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .margin_right(NAMES)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((xs.0..xs.1).log_scale(), (ys.0..ys.1).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("settled orders in the database")
        .x_labels(count(xs))
        .y_labels(count(ys))
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| plain(*y))
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .label_style(("sans-serif", 13))
        .draw()?;
    let mut names = Vec::new();
    for ((name, points), colour) in lines.iter().zip(COLOURS) {
        chart.draw_series(LineSeries::new(
            points.iter().copied(),
            colour.stroke_width(2),
        ))?;
        let dot = |point: &(f64, f64)| Circle::new(*point, 3, colour.filled());
        chart.draw_series(points.iter().map(dot))?;
        if let Some(last) = points.last() {
            names.push((chart.backend_coord(last), *name, colour));
        }
    }
    write_names(all, names)
}

/// Writes the names of the lines beside their ends, none over another.
fn write_names(all: &Area<'_>, mut names: Vec<((i32, i32), &str, RGBColor)>) -> anyhow::Result<()> {
    // From below, because the lowest ones have the least room.
    names.sort_by_key(|((_, y), ..)| std::cmp::Reverse(*y));
    let mut below = i32::MAX;
    for ((x, y), name, colour) in names {
        let y = y.min(below.saturating_sub(NAME_HEIGHT));
        below = y;
        let style = TextStyle::from(("sans-serif", 13).into_font())
            .color(&colour)
            .pos(Pos::new(HPos::Left, VPos::Center));
        all.draw(&Text::new(name, (x + 8, y), style))?;
    }
    Ok(())
}

/// The whole decades around some values, and a little more: a label at the very end would be lost.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = (low.log10().floor(), high.log10().ceil());
    (10_f64.powf(low) * 0.999, 10_f64.powf(high) * 1.001)
}

/// A power of ten without needless digits.
fn plain(value: f64) -> String {
    if value >= 100.0 {
        return number(value);
    }
    let digits = format!("{value:.3}");
    digits
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}
