//! The device itself: copies, pinned memory, events, graphs.

use crate::Run;
use cuda::ops::elementwise::{add, scale};
use cuda::{Buffer, Error, Pinned};

pub fn buffers_are_copied_and_taken_apart(run: &mut Run) -> Result<(), Error> {
    // An odd number, and on a card more than a copy takes at once.
    for len in run.sizes(&[1001], &[33_554_433]) {
        let data: Vec<u32> = (0..len as u32).collect();
        let mut buffer = run.on(&data)?;
        run.same("copying to and from a device", &buffer.to_vec()?, &data);
        run.same("copying a part", &buffer.as_slice().part(3..len - 1).to_vec()?, &data[3..len - 1]);
        let bytes = buffer.as_slice().part(1..3).cast::<u8>().to_vec()?;
        run.same("a part as bytes", &bytes, &[1, 0, 0, 0, 2, 0, 0, 0]);
        buffer.as_mut().part(5..7).copy_from_host(&[70, 80])?;
        let (mut front, back) = buffer.as_mut().split_at(2);
        front.copy_from(back.as_slice().part(3..5))?;
        let head = buffer.as_slice().part(0..8).to_vec()?;
        run.same("copying within a device", &head, &[70, 80, 2, 3, 4, 70, 80, 7]);
        buffer.as_mut().part(1..2).fill_bytes(1)?;
        run.same("filling", &buffer.as_slice().part(0..3).to_vec()?, &[70, 0x0101_0101, 2]);
    }
    let zeros = Buffer::<f32>::zeros(run.device(), 3)?.to_vec()?;
    run.same("zeros", &zeros, &[0.0; 3]);
    let none = run.on::<u8>(&[])?.to_vec()?;
    run.same("no elements", &none, &[]);
    Ok(())
}

pub fn pinned_memory_is_copied_to_and_from(run: &mut Run) -> Result<(), Error> {
    for len in run.sizes(&[5], &[5_000_001]) {
        let mut host = Pinned::<f32>::zeros(run.device(), len)?;
        let zeros = vec![0.0; len];
        run.same("pinned zeros", host.as_slice()?, &zeros);
        let count: Vec<f32> = (1..=len).map(|i| i as f32).collect();
        host.as_mut_slice()?.copy_from_slice(&count);
        let (mut there, mut doubled) = (run.stale(len)?, run.stale(len)?);
        host.copy_to(there.as_mut())?;
        scale(2.0, there.as_slice(), doubled.as_mut())?;
        // Waits for the copy before it writes.
        host.as_mut_slice()?.fill(-1.0);
        host.copy_from(doubled.as_slice())?;
        let expected: Vec<f32> = count.iter().map(|x| 2.0 * x).collect();
        run.same("pinned memory there and back", host.as_slice()?, &expected);
    }
    Ok(())
}

pub fn events_are_in_order(run: &mut Run) -> Result<(), Error> {
    let device = run.device().clone();
    let (a, mut b) = (run.on(&[1.0; 5000])?, run.stale(5000)?);
    let start = device.record()?;
    for _ in 0..3 {
        scale(2.0, a.as_slice(), b.as_mut())?;
    }
    let (middle, end) = (device.record()?, device.record()?);
    let (work, all) = (middle.milliseconds_since(&start)?, end.milliseconds_since(&start)?);
    run.holds(&format!("events: {work} ms of work, {all} ms in all"), work > 0.0 && all >= work && all.is_finite());
    Ok(())
}

pub fn a_graph_does_its_work_each_time_it_runs_and_keeps_its_memory(run: &mut Run) -> Result<(), Error> {
    let device = run.device().clone();
    let (mut total, step) = (run.on(&[0.0f32; 4])?, run.on(&[1.0f32, 2.0, 3.0, 4.0])?);
    let mut sum = total.as_mut();
    let graph = device.graph(|| {
        // Memory of the graph's own: made and dropped while it is recorded.
        let mut next = Buffer::stale(&device, 4)?;
        add(sum.as_slice(), step.as_slice(), next.as_mut())?;
        sum.copy_from(next.as_slice())
    })?;
    drop(step);
    let others = (0..8).map(|_| run.on(&[9.0f32; 4])).collect::<Result<Vec<_>, _>>()?;
    // Once by itself, before it was recorded.
    run.same("a graph, recorded", &total.to_vec()?, &[1.0, 2.0, 3.0, 4.0]);
    for _ in 0..3 {
        graph.launch()?;
    }
    run.same("a graph, run three times", &total.to_vec()?, &[4.0, 8.0, 12.0, 16.0]);
    for other in others {
        run.same("what does not belong to the graph", &other.to_vec()?, &[9.0; 4]);
    }
    Ok(())
}
