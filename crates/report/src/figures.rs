//! Figures as SVG text, drawn with plotters; colours are Okabe and Ito's, which colour-blind readers can tell apart.

use crate::results::{Grid, Toy, ToyPoint};
use crate::table::ArmSummary;
use equipoise_base::{Error, ExitCode, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const PALETTE: [RGBColor; 8] = [
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
    RGBColor(190, 170, 40),
];
const FONT: &str = "sans-serif";

fn color(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// Draws on a canvas of this size and returns the SVG.
fn draw(
    size: (u32, u32),
    paint: impl FnOnce(&Area) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = paint(&area).and_then(|()| Ok(area.present()?));
        drawn.map_err(|error| Error::new(ExitCode::Bug, format!("figure: {error}")))?;
    }
    // Fixed pixel sizes would not follow a phone's width.
    let (width, height) = size;
    let fixed = format!("<svg width=\"{width}\" height=\"{height}\" viewBox");
    Ok(svg.replacen(&fixed, "<svg role=\"img\" viewBox", 1))
}

/// A named series of points.
pub struct Curve {
    /// Legend.
    pub label: String,
    /// Points (x, y).
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common axis, such as training loss over steps.
pub fn curves(curves: &[Curve], x_label: &str, y_label: &str) -> Result<String> {
    let all = || curves.iter().flat_map(|curve| curve.points.iter());
    let x_max = all().map(|p| p.0).fold(1., f64::max);
    let y_max = all().map(|p| p.1).fold(0., f64::max) * 1.05 + 1e-9;
    draw((760, 340), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(0f64..x_max, 0f64..y_max)?;
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc(x_label).y_desc(y_label).label_style((FONT, 13)).light_line_style(WHITE).draw()?;
        for (index, curve) in curves.iter().enumerate() {
            let line = LineSeries::new(curve.points.iter().copied(), color(index).stroke_width(2));
            let key = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color(index).stroke_width(3));
            chart.draw_series(line)?.label(&curve.label).legend(key);
        }
        let legend = &mut chart.configure_series_labels();
        legend.label_font((FONT, 13)).background_style(WHITE.mix(0.85)).border_style(WHITE).draw()?;
        Ok(())
    })
}

/// Accuracy by class, one group of bars per class from most to least frequent, one bar per arm.
pub fn class_bars(arms: &[ArmSummary], classes: &[String], counts: &[u64]) -> Result<String> {
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by_key(|&class| (std::cmp::Reverse(counts.get(class).copied().unwrap_or(0)), class));
    let bar = 0.8 / arms.len().max(1) as f64;
    let legend_height = legend_rows(arms.len()) * LEGEND_ROW;
    draw((900, 340 + legend_height), |area| {
        let (legend, plot) = area.split_vertically(legend_height);
        draw_legend(&legend, arms.iter().map(|arm| arm.label.as_str()))?;
        let mut chart = ChartBuilder::on(&plot)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(46)
            .build_cartesian_2d(-0.5f64..classes.len() as f64 - 0.5, 0f64..1.05)?;
        let name = |x: &f64| {
            let rank = x.round();
            if (x - rank).abs() > 0.1 || rank < 0. {
                return String::new();
            }
            let class = order.get(rank as usize).copied();
            class
                .map(|class| format!("{} ({})", classes[class], counts.get(class).copied().unwrap_or(0)))
                .unwrap_or_default()
        };
        let mesh = &mut chart.configure_mesh();
        mesh.disable_x_mesh().x_labels(classes.len() * 2).x_label_formatter(&name).label_style((FONT, 12));
        mesh.y_labels(6)
            .y_label_formatter(&|y| if *y > 1.01 { String::new() } else { format!("{:.0} %", y * 100.) })
            .light_line_style(WHITE)
            .draw()?;
        for (index, arm) in arms.iter().enumerate() {
            let bars = order.iter().enumerate().filter_map(|(rank, &class)| {
                let left = rank as f64 - 0.4 + index as f64 * bar;
                let value = (*arm.per_class.get(class)?)?;
                Some(Rectangle::new([(left, 0.), (left + bar * 0.92, value)], color(index).filled()))
            });
            chart.draw_series(bars)?;
        }
        Ok(())
    })
}

/// Entries of a legend in a row, and the height of a row in pixels.
const LEGEND_COLUMNS: usize = 3;
const LEGEND_ROW: u32 = 22;

fn legend_rows(entries: usize) -> u32 {
    entries.div_ceil(LEGEND_COLUMNS) as u32
}

/// A legend in a strip of its own, where it can cover nothing.
fn draw_legend<'a>(
    area: &Area,
    labels: impl Iterator<Item = &'a str>,
) -> Result<(), Box<dyn std::error::Error>> {
    let width = area.dim_in_pixel().0 as usize / LEGEND_COLUMNS;
    for (index, label) in labels.enumerate() {
        let left = (index % LEGEND_COLUMNS * width) as i32 + 12;
        let top = (index / LEGEND_COLUMNS * LEGEND_ROW as usize) as i32 + 6;
        area.draw(&Rectangle::new([(left, top), (left + 12, top + 12)], color(index).filled()))?;
        area.draw_text(label, &(FONT, 14).into_font().color(&BLACK), (left + 18, top - 1))?;
    }
    Ok(())
}

/// One dot with its 95 % interval per arm, for one metric; the baseline's mean is the dashed line.
pub fn dots(arms: &[ArmSummary], metric: usize, baseline: &str) -> Result<String> {
    let cells: Vec<_> = arms.iter().filter_map(|arm| Some((arm, arm.cells.get(metric)?.as_ref()?))).collect();
    let reach = |half: f64| if half.is_finite() { half } else { 0. };
    let low = cells.iter().map(|(_, c)| c.value.mean - reach(c.value.half_width)).fold(1., f64::min);
    let high = cells.iter().map(|(_, c)| c.value.mean + reach(c.value.half_width)).fold(0., f64::max);
    let pad = ((high - low) * 0.08).max(0.005);
    let rows = cells.len() as f64;
    draw((520, 70 + 34 * cells.len() as u32), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(262)
            .build_cartesian_2d((low - pad).max(0.)..(high + pad).min(1.), -0.5f64..rows - 0.5)?;
        let name = |y: &f64| {
            let row = y.round();
            let exact = (y - row).abs() < 0.1 && row >= 0.;
            let index = (rows - 1. - row) as usize;
            if exact {
                cells.get(index).map(|(arm, _)| arm.label.clone()).unwrap_or_default()
            } else {
                String::new()
            }
        };
        let mesh = &mut chart.configure_mesh();
        mesh.disable_y_mesh().y_labels(cells.len() * 2).y_label_formatter(&name).x_labels(5);
        mesh.x_label_formatter(&|x| format!("{:.0} %", x * 100.))
            .label_style((FONT, 13))
            .light_line_style(WHITE)
            .draw()?;
        if let Some((_, cell)) = cells.iter().find(|(arm, _)| arm.arm == baseline) {
            let line = [(cell.value.mean, -0.5), (cell.value.mean, rows - 0.5)];
            chart.draw_series(DashedLineSeries::new(line, 4, 4, BLACK.mix(0.4).into()))?;
        }
        for (index, (_, cell)) in cells.iter().enumerate() {
            let y = rows - 1. - index as f64;
            let (mean, half) = (cell.value.mean, reach(cell.value.half_width));
            let whisker =
                PathElement::new([(mean - half, y), (mean + half, y)], color(index).stroke_width(3));
            chart.draw_series([whisker])?;
            chart.draw_series([Circle::new((mean, y), 6, color(index).filled())])?;
        }
        Ok(())
    })
}

/// Real points and the samples of each arm, side by side.
pub fn toy(toy: &Toy) -> Result<String> {
    let panels: Vec<(&str, &[ToyPoint])> = std::iter::once(("real", toy.real.as_slice()))
        .chain(toy.arms.iter().map(|arm| (arm.name.as_str(), arm.points.as_slice())))
        .collect();
    let reach = panels
        .iter()
        .flat_map(|(_, points)| points.iter())
        .map(|p| p.x.abs().max(p.y.abs()))
        .fold(1., f32::max);
    draw((240 * panels.len() as u32, 270), |area| {
        for ((name, points), panel) in panels.iter().zip(area.split_evenly((1, panels.len()))) {
            let mut chart = ChartBuilder::on(&panel)
                .margin(6)
                .caption(*name, (FONT, 14))
                .build_cartesian_2d(-reach..reach, -reach..reach)?;
            chart.configure_mesh().disable_mesh().disable_axes().draw()?;
            let dots = points.iter().map(|p| {
                Circle::new((p.x, p.y), 2, color(if p.class == 0 { 4 } else { 3 }).mix(0.5).filled())
            });
            chart.draw_series(dots)?;
        }
        Ok(())
    })
}

/// Judge agreement and criterion over guidance scale (rows) and feedback strength (columns).
pub fn grid(grid: &Grid) -> Result<String> {
    let (rows, columns) = (grid.cfg_scales.len(), grid.omegas.len());
    let (cell_w, cell_h) = (84, 48);
    let size = (130 + cell_w * columns as u32, 74 + cell_h * rows as u32);
    draw(size, |area| {
        let text = |size: i32| (FONT, size).into_font().color(&BLACK);
        area.draw_text("feedback omega →", &text(13), (130, 6))?;
        area.draw_text("CFG ↓", &text(13), (12, 34))?;
        for (column, omega) in grid.omegas.iter().enumerate() {
            area.draw_text(&format!("{omega}"), &text(13), (150 + (cell_w as usize * column) as i32, 34))?;
        }
        for (row, scale) in grid.cfg_scales.iter().enumerate() {
            let top = 56 + (cell_h as usize * row) as i32;
            area.draw_text(&format!("{scale}"), &text(13), (70, top + 16))?;
            for column in 0..columns {
                let left = 118 + (cell_w as usize * column) as i32;
                let (agreement, value) = (grid.agreement[row][column], grid.value[row][column]);
                let shade = HSLColor(0.44, 0.55, 0.95 - 0.45 * agreement.clamp(0., 1.));
                let corners = [(left, top), (left + cell_w as i32 - 4, top + cell_h as i32 - 4)];
                area.draw(&Rectangle::new(corners, shade.filled()))?;
                area.draw_text(&format!("{:.0} %", agreement * 100.), &text(15), (left + 18, top + 6))?;
                area.draw_text(&format!("{value:.2}"), &text(11), (left + 22, top + 25))?;
            }
        }
        Ok(())
    })
}
