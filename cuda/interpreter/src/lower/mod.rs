//! From the syntax tree to programs: names become rows and addresses, opcodes become what they do, calls are inlined.

mod body;
mod collective;
mod compute;
mod memory;
mod opcode;
mod operand;

use crate::error::Result;
use crate::parse::{Function, Source, Space, Tree, Variable};
use crate::program::{Instruction, Kernel, Op, Param, Register, Row, Slot};
use std::collections::HashMap;

/// What a module's text holds.
pub(crate) struct Lowered {
    pub kernels: Vec<Kernel>,
    pub global: Vec<u8>,
    pub global_names: HashMap<String, (u64, usize)>,
    pub constants: Vec<u8>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
enum Symbol {
    Register(Register),
    /// At a fixed place of its space.
    Variable {
        space: Space,
        offset: u64,
    },
    /// `.shared` of the module: placed in a kernel that uses it.
    ModuleShared {
        bytes: u32,
        align: u32,
    },
    DynamicShared,
}

/// The names between two braces.
#[derive(Default)]
struct Scope<'t> {
    names: HashMap<&'t str, Symbol>,
    /// `%r<9>`: the mask and the count by the name before the number.
    families: HashMap<&'t str, (u64, u32)>,
    labels: HashMap<&'t str, usize>,
    tables: HashMap<&'t str, Vec<&'t str>>,
}

/// Makes one kernel.
struct Builder<'s, 't> {
    source: &'s Source<'t>,
    tree: &'s Tree<'t>,
    /// From the module inwards.
    scopes: Vec<Scope<'t>>,
    code: Vec<Instruction>,
    rows: Vec<Row>,
    /// Rows that are not registers, so that each is there once.
    fixed_rows: HashMap<Row, Slot>,
    /// Index of the instruction after each label, once it is known; branches hold label numbers until the end.
    labels: Vec<Option<u32>>,
    local_bytes: u32,
    shared_bytes: u32,
    /// Of the instruction at work.
    line: u32,
    guard: Option<(Slot, bool)>,
    /// The condition code of `add.cc`.
    carry: Option<Register>,
    /// Functions that are being inlined, outermost first.
    calls: Vec<&'t str>,
    /// Where `ret` goes: none in the entry itself.
    return_label: Option<usize>,
}

/// The programs of a module's entries.
pub(crate) fn lower(source: &Source, tree: &Tree) -> Result<Lowered> {
    let (mut global, mut global_names, mut constants) = (Vec::new(), HashMap::new(), Vec::new());
    let mut names = HashMap::new();
    for variable in &tree.variables {
        let symbol = match (variable.space, variable.bytes) {
            (Space::Shared, None) => Symbol::DynamicShared,
            (Space::Shared, Some(bytes)) => Symbol::ModuleShared { bytes, align: variable.align },
            (_, None) => return Err(source.error(variable.line, format!("{} has no size", variable.name))),
            (space, Some(bytes)) => {
                let to = if space == Space::Const { &mut constants } else { &mut global };
                let offset = place(to, variable, bytes);
                if space == Space::Global {
                    global_names.insert(variable.name.to_string(), (offset, bytes as usize));
                }
                Symbol::Variable { space, offset }
            }
        };
        names.insert(variable.name, symbol);
    }
    let mut kernels = Vec::new();
    for entry in tree.functions.iter().filter(|f| f.is_entry) {
        let module = Scope { names: names.clone(), ..Scope::default() };
        kernels.push(Builder::new(source, tree, module).kernel(entry)?);
    }
    Ok(Lowered { kernels, global, global_names, constants })
}

fn place(to: &mut Vec<u8>, variable: &Variable, bytes: u32) -> u64 {
    let offset = to.len().next_multiple_of(variable.align as usize);
    to.resize(offset, 0);
    to.extend(&variable.initial);
    to.resize(offset + bytes as usize, 0);
    offset as u64
}

impl<'s, 't> Builder<'s, 't> {
    fn new(source: &'s Source<'t>, tree: &'s Tree<'t>, module: Scope<'t>) -> Self {
        Self {
            source,
            tree,
            scopes: vec![module],
            code: Vec::new(),
            rows: Vec::new(),
            fixed_rows: HashMap::new(),
            labels: Vec::new(),
            local_bytes: 0,
            shared_bytes: 0,
            line: 1,
            guard: None,
            carry: None,
            calls: Vec::new(),
            return_label: None,
        }
    }

    fn kernel(mut self, entry: &Function<'t>) -> Result<Kernel> {
        self.line = entry.line;
        let mut params: Vec<Param> = Vec::new();
        let mut scope = Scope::default();
        for p in &entry.params {
            let size = p.bytes.ok_or_else(|| self.source.error(p.line, "a parameter without a size"))?;
            let offset = params.last().map_or(0, |l| l.offset + l.size).next_multiple_of(p.align);
            params.push(Param { name: p.name.to_string(), offset, size, align: p.align });
            scope.names.insert(p.name, Symbol::Variable { space: Space::Param, offset: offset.into() });
        }
        self.scopes.push(scope);
        let body = entry.body.as_deref().ok_or_else(|| self.error(format!("entry {} has no body", entry.name)))?;
        self.body(body)?;
        // Falling off the end is a return.
        self.guard = None;
        self.emit(Op::Exit);
        self.resolve_labels()?;
        Ok(Kernel {
            name: entry.name.to_string(),
            params,
            code: self.code,
            rows: self.rows,
            local_bytes: self.local_bytes,
            static_shared: self.shared_bytes,
            // nvcc aligns dynamic shared memory at 16 at most; ptxas places it after the static variables.
            dynamic_shared_at: self.shared_bytes.next_multiple_of(16),
            max_threads: entry.max_threads,
            required_threads: entry.required_threads,
        })
    }

    fn error(&self, what: impl Into<String>) -> crate::Error {
        self.source.error(self.line, what)
    }

    fn emit(&mut self, op: Op) {
        self.code.push(Instruction { line: self.line, guard: self.guard, op });
    }

    /// A fresh register of the given width.
    fn new_register(&mut self, mask: u64) -> Register {
        self.rows.push(Row::Register { mask });
        Register { slot: self.rows.len() as Slot - 1, mask }
    }

    /// The row that always holds a value which is fixed for a warp.
    fn fixed(&mut self, row: Row) -> Slot {
        let rows = &mut self.rows;
        *self.fixed_rows.entry(row).or_insert_with(|| {
            rows.push(row);
            rows.len() as Slot - 1
        })
    }

    fn constant(&mut self, value: u64) -> Slot {
        self.fixed(Row::Constant(value))
    }

    fn new_label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    /// The label stands before the next instruction.
    fn bind(&mut self, label: usize) {
        self.labels[label] = Some(self.code.len() as u32);
    }

    fn resolve_labels(&mut self) -> Result<()> {
        let labels = &self.labels;
        let resolve = |label: &mut u32| *label = labels[*label as usize].expect("every label of a scope is bound");
        for instruction in &mut self.code {
            match &mut instruction.op {
                Op::Branch { target } => resolve(target),
                Op::BranchIndexed { targets, .. } => targets.iter_mut().for_each(resolve),
                _ => {}
            }
        }
        Ok(())
    }
}
